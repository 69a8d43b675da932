#!/bin/bash
# A dense model in MindSpeed-LLM's style: blocks in quotes, a launcher's block, variables.
export CUDA_DEVICE_MAX_CONNECTIONS=1

NPUS_PER_NODE=4
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=6000
NNODES=1
NODE_RANK=0
WORLD_SIZE=$(($NPUS_PER_NODE*$NNODES))

MODEL=model
DATA=data/corpus_text_document
RUN=runs/dense

TP=2
PP=1

DISTRIBUTED_ARGS="
    --nproc_per_node $NPUS_PER_NODE \
    --nnodes $NNODES \
    --node_rank $NODE_RANK \
    --master_addr $MASTER_ADDR \
    --master_port $MASTER_PORT
"

GPT_ARGS="
    --use-mcore-models \
    --tensor-model-parallel-size ${TP} \
    --pipeline-model-parallel-size ${PP} \
    --sequence-parallel \
    --num-layers 4 \
    --hidden-size 64 \
    --ffn-hidden-size 96 \
    --num-attention-heads 8 \
    --group-query-attention \
    --num-query-groups 4 \
    --tokenizer-type PretrainedFromHF \
    --tokenizer-name-or-path ${MODEL} \
    --seq-length 32 \
    --max-position-embeddings 128 \
    --micro-batch-size 2 \
    --global-batch-size 8 \
    --make-vocab-size-divisible-by 1 \
    --lr 1.25e-3 \
    --min-lr 1.25e-4 \
    --train-iters 40 \
    --lr-decay-style cosine \
    --lr-warmup-fraction 0.1 \
    --untie-embeddings-and-output-weights \
    --disable-bias-linear \
    --attention-dropout 0.0 \
    --hidden-dropout 0.0 \
    --init-method-std 0.01 \
    --position-embedding-type rope \
    --normalization RMSNorm \
    --swiglu \
    # --use-fused-rmsnorm is left to another day
    --use-flash-attn \
    --use-fused-swiglu \
    --recompute-granularity full \
    --recompute-method block \
    --recompute-num-layers 2 \
    --initial-loss-scale 4096 \
    --adam-beta1 0.9 \
    --adam-beta2 0.95 \
    --weight-decay 1e-1 \
    --clip-grad 1.0 \
    --use-distributed-optimizer \
    --overlap-grad-reduce \
    --bf16
"

DATA_ARGS="
    --data-path $DATA \
    --split 90,10,0
"

OUTPUT_ARGS="
    --log-interval 1 \
    --save-interval 20 \
    --eval-interval 10 \
    --eval-iters 2
"

torchrun $DISTRIBUTED_ARGS pretrain_gpt.py \
    $GPT_ARGS \
    $DATA_ARGS \
    $OUTPUT_ARGS \
    --distributed-backend nccl \
    --save $RUN \
    | tee logs/dense.log
