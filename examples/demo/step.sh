# Sourced by the scripts of examples/: prints a command as one would type it, runs it, and notes it with its seconds in $out/commands.tsv.
step() {
  local word line="" begin=$SECONDS
  for word in "$@"; do
    [[ "$word" =~ ^[][A-Za-z0-9_./=:,+-]+$ ]] || word="\"$word\""
    line+="${line:+ }$word"
  done
  printf '\n$ %s\n' "$line"
  "$@"
  printf '%s\t%s\n' "$((SECONDS - begin))" "$line" >>"$out/commands.tsv"
}
