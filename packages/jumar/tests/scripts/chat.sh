torchrun --nproc_per_node 8 inference.py --task chat --tensor-model-parallel-size 2 --pipeline-model-parallel-size 4 --load mg \
    --tokenizer-name-or-path hf --prompt-type llama2 --max-new-tokens 512 --history-turns 5 --num-layers 4
