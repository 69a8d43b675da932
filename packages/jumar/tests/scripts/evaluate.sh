DATA_PATH="./mmlu/test"
TASK="mmlu"
torchrun --nproc_per_node 8 evaluation.py --task-data-path ${DATA_PATH} --task ${TASK} --load mg --tokenizer-type PretrainedFromHF \
    --tokenizer-name-or-path hf --tensor-model-parallel-size 8 --max-new-tokens 1 --evaluation-batch-size 1 --no-chat-template \
    --num-layers 4 --hidden-size 64 --micro-batch-size 1 --bf16 --use-flash-attn --seed 42
