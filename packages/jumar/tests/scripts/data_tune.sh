python ./preprocess_data.py --input ./alpaca.jsonl --tokenizer-name-or-path tok --output-prefix ./dataset/alpaca --workers 1 \
    --handler-name AlpacaStyleInstructionHandler --tokenizer-type PretrainedFromHF --prompt-type qwen --seq-length 128 --neat-pack \
    --map-keys '{"prompt":"instruction","query":"input","response":"output"}' --overwrite-cache --log-interval 1000
