# Each target makes the environment it needs in $(VENV) and says what it installs. Nothing is installed elsewhere.
#   make run PYTHON=/usr/bin/python3.13     another Python
#   make test ARGS="tests/test_settle.py"   what pytest gets
#   make bench ARGS="--only store,scrape"   which benchmarks

VENV ?= .venv
ARGS ?=
# The first Python here that is new enough.
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && exit; done; echo python3)
endif
BIN := $(VENV)/bin
PIP := "$(PYTHON)" -m pip --python "$(BIN)/python"
QUIET := --quiet --no-input --disable-pip-version-check

.PHONY: help run test test-chaos test-live bench lint clean
.DEFAULT_GOAL := help

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.has-demo ## A sidecar and a small fleet of agents, live, until Ctrl-C
	@exec $(BIN)/runmeter demo $(ARGS)

test: $(VENV)/.has-dev ## The tests, in a few minutes
	@exec $(BIN)/python -m pytest -n auto --dist loadfile -m "not chaos and not live" $(ARGS)

test-chaos: $(VENV)/.has-dev ## Kill, freeze and fill real things
	@exec $(BIN)/python -m pytest -m chaos $(ARGS)

test-live: $(VENV)/.has-dev ## Real frameworks at their current releases, an environment for each (.venv-live-*)
	@exec $(BIN)/python tests/live/run.py $(ARGS)

bench: $(VENV)/.has-dev ## Speed, as ratios against peers and floors measured in the same run
	@exec $(BIN)/python tests/benchmarks/run.py $(ARGS)

lint: $(VENV)/.has-dev ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean: ## Remove the environments that this file made
	@rm -rf $(VENV) .venv-live-* .mypy_cache .ruff_cache

$(VENV)/.has-%: pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "runmeter needs Python 3.11 or newer and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1 | tail -n 1); say which one to use: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no ensurepip, so it cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@"$(BIN)/python" -c '' 2>/dev/null || { \
	  echo "making an environment in $(VENV) with $$("$(PYTHON)" -V)"; "$(PYTHON)" -m venv --clear --without-pip "$(VENV)"; }
	@echo "installing runmeter[$*] from here, and the packages that pyproject.toml names for it, into $(VENV)"
# By uv, from PATH or from the package index: it needs a quarter of pip's time. Where it cannot (an index that only pip's
# own configuration knows), by the pip that this Python has, so that the environment needs none; else by one of its own.
	@{ command -v uv >/dev/null || $(PIP) install $(QUIET) uv; } >/dev/null 2>&1; PATH="$(abspath $(BIN)):$$PATH"; \
	uv pip install --quiet --python "$(BIN)/python" -e '.[$*]' 2>/dev/null || $(PIP) install $(QUIET) -e '.[$*]' 2>/dev/null || \
	{ "$(BIN)/python" -m ensurepip >/dev/null && "$(BIN)/python" -m pip install $(QUIET) -e '.[$*]'; }
	@touch $@
