torchrun --nproc_per_node 1 posttrain_gpt.py --stage sft --num-layers 4 --tokenizer-name-or-path model --load model \
    --seq-length 64 --micro-batch-size 1 --train-iters 5 --lr 1e-5 --data-path data/talks --split 100,0,0 --bf16 \
    --attention-dropout 0.0 --hidden-dropout 0.0 --lora-r 8 --lora-alpha 16 --lora-target-modules linear_qkv linear_proj
