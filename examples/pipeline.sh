#!/usr/bin/env bash
# A model and conversations to a tuned model with answers and scores, through all five tools. To be read from top to bottom.
#     examples/pipeline.sh MODEL CHATS.jsonl [OUT]       a Hugging Face directory; lines {"messages": [...]}; default: runs/pipeline
# Each command prints one JSON object, whose `out` the next one takes. Run again, steps that are done say so and do nothing. A step
# that fails ends the script with its exit code. docs/pipelines.md has the keys and the codes; pipeline.py is the same in Python.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
model=${1:?give MODEL and CHATS.jsonl} chats=${2:?give CHATS.jsonl too} out=${3:-runs/pipeline}
here=$(dirname "$0")/pipeline
: "${TP:=1}" "${PP:=1}" "${NPROC:=$((TP * PP))}" # how it is trained: tensor parallel, stages, processes
: "${DEVICE:=auto}" "${SEQ_LEN:=512}" "${RECIPE:=$here/recipe.yaml}"
: "${PROMPTS:=$here/prompts.jsonl}" "${HELD_OUT:=$chats}" # what it is asked, and scored on: conversations that it is not shown
: "${FAIL_UNDER:=conversations.bits_per_byte=0}"         # how much better it must be; 0: no worse than before

# Runs a command and prints where that is which it made.
made() {
  local json
  printf '$ %s\n' "$*" >&2
  json=$("$@" --json) || return
  python3 -c '
import json, sys
made = json.load(sys.stdin)
print("already done:" if made["already_done"] else "done:", made["out"], file=sys.stderr)
print(made["out"])' <<<"$json"
}

# 1. Hugging Face to Megatron shards, one for each rank.
shards=$(made jumar-convert to-megatron "$model" "$out/megatron" --tp "$TP" --pp "$PP")

# 2. Conversations to packed token files, through the model's own chat template.
data=$(made jumar-data sft "$chats" -o "$out/data/chats" --tokenizer "$model" --seq-len "$SEQ_LEN" --pack)

# 3. The scores before, of the shards as they are.
asked=(--tasks "$here/conversations.yaml" --data "$HELD_OUT" --device "$DEVICE")
before=$(made jumar-eval run "$shards" "${asked[@]}" -o "$out/scores-before")

# 4. Training, from the shards on.
run=$(made jumar-train sft "$RECIPE" --nproc "$NPROC" --device "$DEVICE" \
  --set load.path="$shards" --set data.train="$data" --set data.seq_len="$SEQ_LEN" \
  --set parallel.tp="$TP" --set parallel.pp="$PP" --set save.path="$out/run")

# 5. Back to Hugging Face.
tuned=$(made jumar-convert to-hf "$run" "$out/hf")

# 6. Answers.
answers=$(made jumar-infer generate "$tuned" "$PROMPTS" --temperature 0 --device "$DEVICE" -o "$out/answers.jsonl")
cat "$answers"

# 7. The scores after, and whether they are good enough.
after=$(made jumar-eval run "$tuned" "${asked[@]}" -o "$out/scores-after")
jumar-eval compare "$before" "$after" --fail-under "$FAIL_UNDER"
