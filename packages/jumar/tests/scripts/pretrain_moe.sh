# Experts, from weights, on a launcher that MindSpore has.
NPUS=8
DISTRIBUTED_ARGS="
    --worker_num $NPUS \
    --local_worker_num $NPUS \
    --log_dir="msrun_log" \
    --join=True \
    --master_port 6000
"
MOE_ARGS="
    --num-experts 8 \
    --moe-router-topk 2 \
    --moe-ffn-hidden-size 48 \
    --moe-router-load-balancing-type aux_loss \
    --moe-aux-loss-coeff 0.02 \
    --moe-token-dispatcher-type alltoall_seq \
    --moe-grouped-gemm \
    --moe-permutation-async-comm
"
msrun $DISTRIBUTED_ARGS pretrain_gpt.py $MOE_ARGS \
    --tensor-model-parallel-size 2 --sequence-parallel --expert-model-parallel-size 2 --pipeline-model-parallel-size 2 \
    --noop-layers 4,5 --num-layers 6 --hidden-size 64 --num-attention-heads 8 \
    --tokenizer-type PretrainedFromHF --tokenizer-name-or-path moe --load weights --finetune --no-load-optim --no-load-rng \
    --seq-length 32 --micro-batch-size 1 --global-batch-size 16 --train-iters 30 --lr 1e-4 --lr-decay-style constant \
    --attention-dropout 0.0 --hidden-dropout 0.0 --data-path data/corpus --split 100,0,0 --bf16 --seed 7 --save runs/moe \
    --no-save-optim --ai-framework mindspore
