# Sourced by the scripts of examples/ with their arguments: prints their usage, refuses what is unknown, changes to the repository.
case ${1:-} in
  -h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  -*)
    printf 'error: no option %s\nhint: %s --help\n' "$1" "$0" >&2
    exit 2
    ;;
esac
if [ -n "${JUMAR_DEMO:-}" ] && [ "$JUMAR_DEMO" != short ]; then
  printf 'error: JUMAR_DEMO=%s: expected short\nhint: leave it unset for the whole run\n' "$JUMAR_DEMO" >&2
  exit 2
fi
stood=$PWD
cd "$(dirname "$0")/.."

# Where a path lies that was typed where the caller stands.
typed() {
  if [ "${1#/}" != "$1" ] || [ "$stood" = "$PWD" ]; then printf '%s' "$1"; else printf '%s' "$stood/$1"; fi
}
