accelerate launch --multi_gpu --num_processes 8 -m lm_eval --model hf --model_args pretrained=hf,trust_remote_code=True \
    --tasks mmlu,gsm8k --batch_size 8 --output_path out --log_samples
