python tools/run_text_generation_server.py --tensor-model-parallel-size 1 --load mg --port 5001 --tokenizer-type HuggingFaceTokenizer \
    --tokenizer-model hf --max-batch-size 4 --bf16 --num-layers 4 --top-p 0.9
