source /usr/local/Ascend/ascend-toolkit/set_env.sh

python convert_ckpt_v2.py \
    --load-model-type hf \
    --save-model-type mg \
    --target-tensor-parallel-size 2 \
    --target-pipeline-parallel-size 2 \
    --num-layers-per-virtual-pipeline-stage 1 \
    --num-layers 4 \
    --load-dir ./hf/ \
    --save-dir ./mg/ \
    --model-type-hf llama2

# further parallel sizes as the cluster needs them: --num-layer-list 1,3 \
