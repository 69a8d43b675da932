#!/bin/bash
# Megatron-LM's style: arrays, comments in them, arguments of the script, a branch, flags that its parser has defaults for.
set -euo pipefail

GPUS_PER_NODE=4
NUM_NODES=${SLURM_NNODES:-1}
CHECKPOINT_PATH=$1          # runs
DATA_PATH="$2"
PRECISION=${PRECISION:-bf16}

GPT_MODEL_ARGS=(
    --num-layers 4
    --hidden-size 64
    --num-attention-heads 8
    --seq-length 32 # tokens
    --max-position-embeddings 128
    --attention-backend auto   # flash, fused, unfused or local
)
TRAINING_ARGS=(
    --micro-batch-size 1
    --global-batch-size 8
    --train-samples 400
    --lr-warmup-samples 40
    --lr-decay-samples 320
    --lr 6.0e-4
    --min-lr 6.0e-5
    --attention-dropout 0
)
if [[ "$PRECISION" == "bf16" ]]; then
    TRAINING_ARGS+=( --bf16 )
else
    TRAINING_ARGS+=( --fp16 )
fi
MODEL_PARALLEL_ARGS=(
	--tensor-model-parallel-size 2
	--pipeline-model-parallel-size 2
	--num-layers-per-virtual-pipeline-stage 1
)
DATA_ARGS=(
    --data-path 0.7 $DATA_PATH 0.3 ${DATA_PATH}
    --tokenizer-type HuggingFaceTokenizer
    --tokenizer-model model
    --split 949,50,1
    --data-cache-path cache
)
EVAL_AND_LOGGING_ARGS=(
    --log-interval 10
    --save-interval 50
    --save $CHECKPOINT_PATH
    --load $CHECKPOINT_PATH
    --eval-interval 25
    --eval-iters 1
    --distributed-timeout-minutes 10
)

torchrun --nproc_per_node $GPUS_PER_NODE --nnodes $NUM_NODES ./pretrain_gpt.py \
    ${GPT_MODEL_ARGS[@]} \
    "${TRAINING_ARGS[@]}" \
    ${MODEL_PARALLEL_ARGS[@]} \
    ${DATA_ARGS[@]} \
    ${EVAL_AND_LOGGING_ARGS[@]}
