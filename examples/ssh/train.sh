#!/usr/bin/env bash
# Starts a run on several machines over ssh, without a scheduler and without MPI.
#
#   train.sh HOSTS pretrain recipe.yaml [--set A.B=C ...]
#   DEVICES=8 SETUP='source /usr/local/Ascend/ascend-toolkit/set_env.sh' train.sh HOSTS sft recipe.yaml
#
# HOSTS: a file with a host a line, as ssh takes it (user@host, or a name of ~/.ssh/config), # for comments. The first one has rank 0;
# MASTER_ADDR is its address as the others see it, if that is not its name. ssh must ask for nothing (keys). On each host the run
# starts in this directory's path (or DIR), after the commands in SETUP, with DEVICES ranks (8). NCCL_*, HCCL_*, GLOO_* and JUMAR_* are
# passed on. LOGS/node-K.log (logs/) has what node K prints; that of node 0 is shown too.
#
# Ctrl-C, SIGTERM and SIGUSR1 go to every node: the run saves and ends with 75, and the same command goes on. A second one ends it
# at once. If a node fails, the others are asked to end, and killed after GRACE seconds (60). If this script or its connection dies,
# the nodes save and end by themselves. The exit code is that of the first node that failed, else 75 if the run was stopped, else 0.
set -uo pipefail

if [ $# -lt 2 ] || [ ! -r "$1" ]; then
  echo "usage: train.sh HOSTS pretrain|sft RECIPE.yaml [--set A.B=C ...]" >&2
  exit 2
fi
mapfile -t hosts < <(sed 's/#.*//' "$1" | awk 'NF { print $1 }')
shift
first=${hosts[0]##*@}
DIR=${DIR:-$PWD} LOGS=${LOGS:-logs} SETUP=${SETUP:-:} DEVICES=${DEVICES:-8} GRACE=${GRACE:-60}
environment=("PET_NNODES=${#hosts[@]}" "PET_MASTER_ADDR=${MASTER_ADDR:-$first}" "PET_MASTER_PORT=${MASTER_PORT:-29500}")
while IFS= read -r name; do environment+=("$name=${!name}"); done < <(compgen -e | grep -E '^(NCCL|HCCL|GLOO|JUMAR)_')

# What runs on a node. Its standard input names signals, a line each; its end means that nobody is there any more.
# shellcheck disable=SC2016
node='
cd "$1" || exit 4
eval "$2" || exit 4
shift 2
print() { trap "" PIPE; while IFS= read -r line; do printf "%s\n" "$line"; done; }   # a run must not die of a lost connection
env "$@" </dev/null > >(print 2>/dev/null) 2>&1 &
launcher=$!
{
  while read -r name; do kill -s "$name" "$launcher"; done
  kill -s TERM "$launcher"
  sleep 600
  kill -s TERM "$launcher"
} <&0 >/dev/null 2>&1 &
reader=$!
wait "$launcher"
code=$?
kill "$reader"
exit "$code"'

mkdir -p "$LOGS"
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
inputs=()

quoted() { # WORDS...: as any shell takes them
  local word
  for word in "$@"; do printf "'%s' " "${word//\'/\'\\\'\'}"; done
}

start() { # NODE HOST COMMAND...: ssh in the background, its input a pipe of which this script holds the other end
  local number=$1 host=$2
  shift 2
  mkfifo "$state/$number"
  (
    trap '' INT TERM USR1 HUP
    for input in "${inputs[@]}"; do exec {input}>&-; done
    # shellcheck disable=SC2029
    ssh -o BatchMode=yes -o ServerAliveInterval=15 "$host" "$(quoted bash -c "$node" node "$DIR" "$SETUP" \
      "${environment[@]}" "PET_NODE_RANK=$number" "$@")" <"$state/$number" >>"$LOGS/node-$number.log" 2>&1
    echo "$number $?" >>"$state/ended"
  ) &
  exec {input}>"$state/$number"
  inputs+=("$input")
}

tell() { # SIGNAL: to every node that is still there
  local input
  for input in "${inputs[@]}"; do echo "$1" >&"$input"; done 2>/dev/null
}

ended() { wc -l <"$state/ended"; }

: >"$state/ended"
touch "$LOGS/node-0.log"
tail -n 0 -f --pid $$ "$LOGS/node-0.log" &
shown=$!
trap '' PIPE
for number in "${!hosts[@]}"; do
  start "$number" "${hosts[number]}" jumar-train "$@" --nproc "$DEVICES"
done
for name in INT TERM USR1 HUP; do
  # shellcheck disable=SC2064
  trap "tell $name" "$name"
done

failed='' since=0
while [ "$(ended)" -lt "${#hosts[@]}" ]; do
  sleep 0.5 &
  wait $!
  if [ -z "$failed" ]; then
    failed=$(awk '$2 != 0 && $2 != 75 { print $1; exit }' "$state/ended")
    [ -n "$failed" ] && tell TERM && since=$SECONDS
  elif [ $((SECONDS - since)) -ge "$GRACE" ]; then
    tell TERM                        # the second one: jumar-train kills its ranks
    since=$SECONDS
  fi
done
sleep 0.5
kill "$shown"
code=$(awk '$2 != 0 && $2 != 75 { code = $2; exit } $2 == 75 { code = 75 } END { print code + 0 }' "$state/ended")
[ -n "$failed" ] && echo "node $failed (${hosts[failed]}) ended with code $code; $LOGS/node-$failed.log" >&2
exit "$code"
