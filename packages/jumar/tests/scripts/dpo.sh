torchrun --nproc_per_node 1 posttrain_gpt.py --stage dpo --dpo-loss-type sigmoid --is-pairwise-dataset --load model --lr 1e-6 \
    --tokenizer-name-or-path model --data-path data/pairs --seq-length 64 --train-iters 5 --attention-dropout 0.0
