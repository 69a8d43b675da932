python convert_ckpt.py --model-type GPT --load-model-type mg --save-model-type hf --use-mcore-models \
    --target-tensor-parallel-size 1 --target-pipeline-parallel-size 1 --load-dir ./mg/ --save-dir ./hf/ --model-type-hf llama2
