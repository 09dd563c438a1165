# `make run` serves a demo model, `make test` runs every test; both set up what they need.
# Only Python 3.11 or later with pip, and make, have to be there.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq

# Where `make run` keeps model, keys and logs, and where it listens. Keys guard the port, but
# a demo is for this machine until you say HOST=0.0.0.0.
DATA_DIR ?= ./data
HOST     ?= 127.0.0.1
MODEL    ?= smollm2

# How much `make soak` does, and how long `make fuzz` goes on; SEED=... does the same again.
REQUESTS ?= 200000
STREAMS  ?= 2000
SECONDS  ?= 60

.DEFAULT_GOAL := help
.PHONY: help run test soak fuzz bench cost compiled check format lint types imports docs lock reference clean

help: ## show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.run ## serve the demo model (MODEL=... DATA_DIR=... HOST=... for others)
	@HOST='$(HOST)' DATA_DIR='$(DATA_DIR)' exec $(BIN)/llama-gguf serve $(MODEL) --create-key

test: $(VENV)/.dev ## run every test, with the real engine and the real demo model
	$(BIN)/pytest

soak: $(VENV)/.dev ## a real gateway under REQUESTS=200000 and STREAMS=2000 that go wrong in every way
	$(BIN)/python -m tests.soak --requests $(REQUESTS) --streams $(STREAMS) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.dev ## mutated bytes at the gateway's parsers for SECONDS=60
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/.run ## measure the gateway beside nginx and HAProxy (BENCH='--rounds 1 ours nginx')
	$(BIN)/python -m benchmarks $(BENCH)

check: lint types imports docs test ## everything that has to hold before a commit

format: $(VENV)/.dev ## put the code into shape
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.dev ## check that what is printed from code is up to date
	$(BIN)/python -m llama_gguf.cli.reference --check

reference: $(VENV)/.dev ## print docs/settings.md, docs/cli.md and the like anew from code
	$(BIN)/python -m llama_gguf.cli.reference

lock: | $(VENV)/bin/python ## take the newest versions that pyproject.toml allows
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --extra engine --group pyproject.toml:build -o locks/run.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --extra engine --group pyproject.toml:dev -o locks/dev.txt pyproject.toml

cost: $(VENV)/.dev ## count instructions and system calls per request; needs valgrind and strace
	$(BIN)/python -m benchmarks.cost

compiled: $(VENV)/.dev ## compile the hot modules and run the gateway's tests against them
	rm -rf build/compiled
	LLAMA_GGUF_COMPILE=1 $(BIN)/python -m pip --disable-pip-version-check wheel -q --no-deps -w build .
	$(BIN)/python -m zipfile -e build/llama_gguf_inference-*.whl build/compiled
	PYTHONPATH=build/compiled $(BIN)/pytest tests/gateway/test_client_*.py tests/gateway/test_opened.py tests/fuzz

clean: ## remove what was made here, but not ./data
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build

# The stamps are renewed when what they stand for changes; ensurepip comes with Python.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; say which with PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: locks/run.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) ..."
	@$(PIP) --require-hashes -r locks/run.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: locks/dev.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV), with what the tests need ..."
	@$(PIP) --require-hashes -r locks/dev.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
