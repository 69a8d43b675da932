TOKENIZER="hf"
torchrun --nproc_per_node 2 --nnodes 1 inference.py --tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --num-layers 4 \
    --load mg --tokenizer-type PretrainedFromHF --tokenizer-name-or-path ${TOKENIZER} --seq-length 4096 --max-new-tokens 8 \
    --task greedy do_sample --temperature 0.7 --top-p 0.9 --seed 42 --use-kv-cache --no-masked-softmax-fusion --bf16 \
    --exit-on-missing-checkpoint --attention-dropout 0.0 --micro-batch-size 1 --hf-chat-template
