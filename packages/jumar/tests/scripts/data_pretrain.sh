mkdir -p dataset
python ./preprocess_data.py \
    --input ./text.jsonl \
    --tokenizer-name-or-path ./tok/ \
    --tokenizer-type PretrainedFromHF \
    --handler-name GeneralPretrainHandler \
    --output-prefix ./dataset/corpus \
    --json-keys text \
    --workers 1 \
    --log-interval 1000 \
    --append-eod
