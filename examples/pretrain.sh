#!/usr/bin/env bash
# A model from random weights on real text, the pages of docs/ in English and Chinese. `make demo-pretrain` runs it on two processes,
# tensor-parallel; `make demo-moe` with four experts a layer, two on each process. Some minutes on two cores; run again, it goes on.
#     examples/pretrain.sh [llama|mixtral] [OUT]        default: llama runs/demo-pretrain
#     JUMAR_DEMO=short examples/pretrain.sh ...         four steps
set -euo pipefail
source "$(dirname "$0")/demo/begin.sh"
kind=${1:-llama}
out=$([ -n "${2:-}" ] && typed "$2" || printf runs/demo-pretrain)
case $kind in
  llama | mixtral) ;;
  *)
    printf 'error: no kind of model is %s\nhint: llama or mixtral\n' "$kind" >&2
    exit 2
    ;;
esac
mkdir -p "$out"
source examples/demo/step.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # of each process
[ "$kind" = mixtral ] && layout=(--set parallel.ep=2) || layout=(--set parallel.tp=2)
if [ "${JUMAR_DEMO:-}" = short ]; then layout+=(--set train.steps=4 --set schedule.warmup_steps=1 --set train.eval_every=2); fi

# 1. The text; a tokenizer that is made of it, and the architecture.
step python examples/demo/pages.py "$out/pages.jsonl"
[ -e "$out/model/config.json" ] || step python examples/demo/tiny_model.py "$out/model" "$kind" "$out/pages.jsonl"

# 2. Text to tokens.
step jumar-data pretrain "$out/pages.jsonl" -o "$out/data/docs" --tokenizer "$out/model" --append-eod

# 3. What the run would be, then the run.
run=(examples/demo/pretrain.yaml --nproc 2 --set model.path="$out/model" --set data.train="$out/data/docs" --set save.path="$out/run")
step jumar-train pretrain "${run[@]}" "${layout[@]}" --dry-run
step jumar-train pretrain "${run[@]}" "${layout[@]}"

# 4. The shards of both ranks are one Hugging Face model again, and it goes on with a sentence.
step jumar-convert to-hf "$out/run" "$out/hf"
step jumar-infer generate "$out/hf" -p "The checkpoint" --temperature 0 --max-new-tokens 40
cat <<END

The loss is drawn in $out/run/loss.svg. Next:
    jumar-train pretrain examples/demo/pretrain.yaml --help        other layouts: --set parallel.pp=2
    jumar-data pretrain FILES -o PREFIX --tokenizer DIR            your own text
END
