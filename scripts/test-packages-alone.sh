#!/usr/bin/env bash
# Each package's own tests, the package installed as its users install it: from its wheel, into an empty environment that holds
# only what it declares. No torch, and no package of a higher floor.
#     scripts/test-packages-alone.sh [PYTHON ...]        default: python3; a PYTHON that is not here is skipped aloud
set -euo pipefail
cd "$(dirname "$0")/.."

# Lower floors first: each stays installed for the next.
packages=("packages/schema[chat,cli]" "packages/ckpt-convert[gguf]" "packages/data-prep[fast,gigatoken,sentences]")
export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt

for name in "${@:-python3}"; do
  python=""
  for candidate in "$name" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"${name#python}".*/bin/python; do
    if "$candidate" -c "" 2>/dev/null; then python=$candidate && break; fi
  done
  if [ -z "$python" ]; then
    echo "skipped: the packages alone on $name, which is not installed here" >&2
    continue
  fi

  "$python" -m venv --clear .venv-alone
  pip=(.venv-alone/bin/python -m pip install --quiet --retries 8)
  "${pip[@]}" pytest pytest-timeout pytest-xdist hypothesis
  for package in "${packages[@]}"; do
    "${pip[@]}" "$package"
    echo "== $package alone on $(.venv-alone/bin/python --version)"
    .venv-alone/bin/python -c "import importlib.util as find; assert find.find_spec('torch') is None, 'torch came along'"
    .venv-alone/bin/python -m pytest -q -n 2 --dist worksteal -m "not slow" "${package%[*}/tests"
  done
done
