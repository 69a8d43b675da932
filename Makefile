# Everything runs in one environment, .venv, which is made when first needed and again when a requirement changes.
#   make test PYTHON=python3.11                                                   another interpreter (3.10 or newer)
#   make test-offline TESTS="packages/schema packages/eval"                       some of the tests, for test-offline
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"   torch without CUDA: a far smaller download

PYTHON    ?= python3
PIP_ARGS  ?=
BIN       := .venv/bin
INSTALLED := .venv/installed
TESTS     ?=

# pip reads constraints.txt from its environment, so that it also holds where the packages are built, and replaces a caller's.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip

.NOTPARALLEL:
.PHONY: help demo demo-pretrain demo-moe test test-offline test-all bench docs lint format clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

demo: $(INSTALLED) ## a real 135M model through all five tools, to runs/demo/index.html (JUMAR_DEMO=short: two steps of training)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart.sh

demo-pretrain: $(INSTALLED) ## a tiny model from random weights on the pages of docs/, tensor-parallel
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/pretrain.sh

demo-moe: $(INSTALLED) ## the same with experts, expert-parallel
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/pretrain.sh mixtral runs/demo-moe

test: lint ## linters, then every test that is not slow
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-offline: $(INSTALLED) ## every test that is not slow, with the network cut
	$(BIN)/python scripts/offline.py $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(TESTS)

test-all: lint ## linters, then every test; every package alone, without torch on Python 3.10 too
	$(BIN)/python -m pytest -n 2 --dist worksteal
	$(BIN)/python scripts/packages_alone.py
	$(BIN)/python scripts/packages_alone.py --python python3.10 --torch-free --offline

bench: $(INSTALLED) ## every benchmark, one after another
	@set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

docs: $(INSTALLED) ## the documentation for a browser, English and Chinese, to runs/docs/index.html; a warning is an error
	$(BIN)/python scripts/docs.py

lint: $(INSTALLED) ## style, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(INSTALLED) ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove the environments and all caches
	rm -rf .venv .venv-alone .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements-dev.txt constraints.txt $(wildcard packages/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "error: $(PYTHON) is not Python 3.10 or newer; name one that is: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 4; }
	@$(PYTHON) -m venv .venv
	@echo "installing requirements-dev.txt into .venv; the first time that takes minutes, torch being large"
	@$(PIP) install --quiet --retries 8 $(PIP_ARGS) -r requirements-dev.txt
	@touch $@
