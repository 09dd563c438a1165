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
.PHONY: help setup run test soak fuzz bench cost compiled check format lint types imports docs lock reference clean

help: ## show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.dev ## set up everything for work on the code, and checks before each commit
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/pre-commit install; fi

run: $(VENV)/.run ## serve the demo model (MODEL=... DATA_DIR=... HOST=... for others)
	@HOST='$(HOST)' DATA_DIR='$(DATA_DIR)' exec $(BIN)/llama-gguf serve $(MODEL) --create-key

test: $(VENV)/.dev ## run every test, with the real engine and the real demo model
	$(BIN)/pytest

test-image: $(VENV)/.dev ## build the CPU image and run it: with Docker, else with buildah, which it installs
	@docker info >/dev/null 2>&1 || { command -v buildah && command -v debootstrap; } >/dev/null \
	    || { apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah debootstrap crun; }
	$(BIN)/pytest -m image tests/e2e/test_image.py

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

lint: $(VENV)/.dev lint-files
	$(BIN)/ruff format --check
	$(BIN)/ruff check

lint-files: # what is not Python: scripts, image, workflows, compose files
	$(BIN)/shellcheck $$(git ls-files '*.sh') .ci/run
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/zizmor --offline --quiet --no-progress .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/*.yaml

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.dev site ## check that what is printed from code is up to date, and that the pages hold together
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
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --extra hub -o locks/image.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --group pyproject.toml:build --group pyproject.toml:compile -o locks/build.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --group pyproject.toml:publish -o locks/publish.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --group pyproject.toml:clients -o locks/clients.txt

cost: $(VENV)/.dev ## count instructions and system calls per request; needs valgrind and strace
	$(BIN)/python -m benchmarks.cost

# Left out are tests that look into classes in ways that compiled ones do not offer.
compiled: $(VENV)/.dev ## compile the hot modules and run their tests against them
	rm -rf build/compiled build/llama_gguf_inference-*.whl
	LLAMA_GGUF_COMPILE=1 $(BIN)/python -m pip --disable-pip-version-check wheel -q --no-deps -w build .
	$(BIN)/python -m zipfile -e build/llama_gguf_inference-*.whl build/compiled
	PYTHONPATH=build/compiled $(BIN)/pytest tests/core tests/gateway tests/fuzz \
	    --ignore tests/core/test_limits.py --ignore tests/core/test_messages.py \
	    --deselect tests/gateway/test_shared.py::test_no_secret_is_in_what_can_be_printed

engine-facts: $(VENV)/.dev ## record what the installed llama-server is like, after a look at what changed
	-RECORD_ENGINE_FACTS=1 $(BIN)/pytest -q tests/e2e/test_drift.py
	git diff --stat tests/e2e/engine_facts.txt

# Shipping -----------------------------------------------------------------------------------------

.PHONY: test-image lint-files engine-facts site image image-cuda image-push image-index registry-login
.PHONY: dist wheels sbom release-check release-notes changelog github-release

IMAGE    ?= llama-gguf-inference
# Registries want it in small letters, whoever the owner is.
NAME      = $(shell printf %s '$(IMAGE)' | tr A-Z a-z)
VERSION   = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/llama_gguf/__init__.py)
REVISION ?= $(shell git rev-parse HEAD)
SOURCE   ?= unknown
ENGINE   ?= server
ARCHES   ?= amd64 arm64
BASE     ?= ghcr.io/ggml-org/llama.cpp:$(ENGINE)
LABELS    = --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) --build-arg SOURCE=$(SOURCE)
DOCKER_BUILD = docker buildx build -f docker/Dockerfile --build-arg BASE=$(BASE) $(LABELS)

image: ## build the image for CPUs (IMAGE=name; BASE=... for another llama.cpp image)
	$(DOCKER_BUILD) --load -t $(NAME):cpu .

image-cuda: ENGINE = server-cuda
image-cuda: ## build the image for NVIDIA GPUs
	$(DOCKER_BUILD) --load -t $(NAME):cuda .

registry-login: # with REGISTRY_USER and REGISTRY_TOKEN of the environment
	@printenv REGISTRY_TOKEN | docker login ghcr.io --username "$$REGISTRY_USER" --password-stdin

# For the workflows, once an architecture: TAGS="cpu-amd64 0.1.0-cpu-amd64", with SBOM and provenance.
image-push:
	docker buildx create --use --driver docker-container
	$(DOCKER_BUILD) --push --sbom=true --provenance=mode=max $(foreach tag,$(TAGS),-t $(NAME):$(tag)) .

# One name for both architectures: TAGS="cpu 0.1.0-cpu", of images that were pushed as TAG-amd64 and TAG-arm64.
image-index:
	$(foreach tag,$(TAGS),docker buildx imagetools create -t $(NAME):$(tag) \
	    $(foreach arch,$(ARCHES),$(NAME):$(tag)-$(arch)) &&) true

dist: $(VENV)/.dev ## build sdist and a wheel for any machine into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

wheels: $(VENV)/publish/.done ## build compiled wheels for Linux into dist/; needs Docker
	$(VENV)/publish/bin/cibuildwheel --platform linux --output-dir dist

sbom: $(VENV)/publish/.done dist ## write what the package is made of, as CycloneDX, to dist/sbom.cdx.json
	$(PYTHON) -m venv --clear build/sbom
	build/sbom/bin/python -m pip --disable-pip-version-check install -q --require-hashes -r locks/image.txt
	build/sbom/bin/python -m pip --disable-pip-version-check install -q --no-deps dist/*.whl
	build/sbom/bin/python -m pip --disable-pip-version-check uninstall -q --yes pip setuptools
	$(VENV)/publish/bin/cyclonedx-py environment --output-reproducible -o dist/sbom.cdx.json build/sbom

release-check: dist ## is it fit to be released? (TAG=v0.1.0 for the tag to be)
	$(BIN)/python -m tests.release $(TAG)

release-notes: $(VENV)/.dev ## print what changed in this version
	@$(BIN)/python -m tests.release --notes

conf    = $(shell sed -n 's/^$(1) = "\(.*\)"/\1/p' docs/conf.py)
DRAWER := build/mermaid/$(call conf,mermaid_version)

site: $(VENV)/.dev $(if $(shell command -v npm),$(DRAWER)) ## make HTML of docs/ in build/site
	$(BIN)/sphinx-build -n -W --keep-going -q docs build/site

# What draws the diagrams, so that a page that is read fetches nothing from elsewhere.
$(DRAWER):
	rm -rf $(@D) && mkdir -p $(@D)
	cd $(@D) && npm pack --silent mermaid@$(@F) >/dev/null
	cd $(@D) && echo '$(call conf,mermaid_sha256)  mermaid-$(@F).tgz' | sha256sum --check --quiet
	cd $(@D) && tar -xzf mermaid-$(@F).tgz --exclude='*.map' package/dist/mermaid.esm.min.mjs package/dist/chunks/mermaid.esm.min
	cd $(@D) && rm mermaid-$(@F).tgz && mv package/dist $(@F) && rmdir package

changelog: $(VENV)/.dev ## gather the fragments of changes/ into CHANGELOG.md, for the version in __init__.py
	$(BIN)/towncrier build --yes --version $(VERSION)

github-release: $(VENV)/.dev # for the workflow: TAG=v0.1.0; what is in dist/ goes with it
	$(BIN)/python -m tests.release --notes > dist/notes.md
	gh release create $(TAG) --verify-tag --notes-file dist/notes.md dist/*.whl dist/*.tar.gz dist/*.json

clean: ## remove what was made here, but not ./data
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build

# The stamps are renewed when what they stand for changes. ensurepip comes with Python, but not with
# Debian's: what `venv` leaves behind without it would pass for done at the next try.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; say which with PYTHON=...")'
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

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

# On its own: what makes wheels and pages needs other versions than the tests do.
$(VENV)/publish/.done: locks/publish.txt | $(VENV)/bin/python
	@$(BIN)/python -m venv --clear $(VENV)/publish
	@$(VENV)/publish/bin/python -m pip --disable-pip-version-check install -qq --require-hashes -r locks/publish.txt
	@touch $@
