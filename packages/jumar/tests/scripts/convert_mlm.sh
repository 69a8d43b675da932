python tools/checkpoint/convert.py --model-type GPT --loader llama_mistral --saver core --checkpoint-type hf --model-size llama3 \
    --load-dir $HF_DIR --save-dir ${MG_DIR} --target-tensor-parallel-size 2 --tokenizer-model ${HF_DIR}/tokenizer.model --bf16
