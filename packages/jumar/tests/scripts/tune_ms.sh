#!/bin/bash
NPUS_PER_NODE=2
CKPT_LOAD_DIR="model"
CKPT_SAVE_DIR="runs/tuned"
TUNE_ARGS="
    --finetune \
    --stage sft \
    --is-instruction-dataset \
    --tokenizer-not-use-fast \
    --prompt-type qwen \
    --variable-seq-lengths \
    --no-shuffle
"
torchrun --nproc_per_node $NPUS_PER_NODE --nnodes 1 --node_rank 0 --master_addr localhost --master_port 6000 posttrain_gpt.py \
    $TUNE_ARGS \
    --tensor-model-parallel-size 1 --pipeline-model-parallel-size 2 --num-layers 4 --hidden-size 64 --num-attention-heads 8 \
    --tokenizer-type PretrainedFromHF --tokenizer-name-or-path model --load $CKPT_LOAD_DIR --save $CKPT_SAVE_DIR \
    --seq-length 64 --micro-batch-size 1 --global-batch-size 4 --train-iters 5 --lr 1.25e-6 --lr-decay-style cosine \
    --lr-warmup-fraction 0.01 --min-lr 1.25e-7 --weight-decay 0.1 --clip-grad 1.0 --adam-beta1 0.9 --adam-beta2 0.95 \
    --attention-dropout 0.0 --hidden-dropout 0.0 --data-path data/talks --split 100,0,0 --bf16 --enable-hf2mg-convert \
    --reset-attention-mask --save-interval 5 --eval-interval 5 --eval-iters 0
