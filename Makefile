# Everything runs from .venv, which scripts/setup makes once. `make` alone lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTEST_ARGS ?=
ARGS ?=
N ?= 4
# (two more than two cores: tests of real processes also wait)
JOBS ?= 4
export PYTHON CUDA CUDA_ARCHS VULKAN CMAKE_ARGS
# Tests, demos and benchmarks start hundreds of processes; without bytecode each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE
# Several engines share the cores: a thread of one that waits busily takes time from the others (half of all).
test coverage nightly: export OMP_WAIT_POLICY = passive

ready := .venv/.ready
gemma := .venv/.gemma
programs := .venv/.test-programs
models := .venv/llama.cpp/models
# One file's tests run in one process, for they share what is costly to open. tests/conftest.py sets the order.
dist := --dist loadfile --no-loadscope-reorder
js := tests/interop/js/node_modules/.package-lock.json
clients := tests/interop/clients/node_modules/.package-lock.json
agents := tests/interop/agents/node_modules/.package-lock.json
pythons := .venv/clients/.ready
site := .venv/site/.ready
# make sees by the files' times whether .venv is up to date. What it cannot see, the script looks at (20 ms): a folder
# that was moved or copied together with its .venv, a .venv whose Python is gone, a build asked for with other options.
ifneq ($(shell .venv/bin/python -c "import sys" 2>/dev/null && sed -n 1p $(ready) 2>/dev/null),$(CURDIR))
recheck := recheck
endif
ifneq ($(CUDA)$(VULKAN)$(CMAKE_ARGS),)
recheck := recheck
endif

.PHONY: help setup demo test gpu-test cuda-build generic-build coverage nightly mixed interop lab check docs fuzz soak month dist try pythons image release-check lock format node swarm screenshot evaluation clean recheck

help:  ## list the targets
	@echo "make TARGET, the first one sets .venv up by itself:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'
	@echo "Options: PYTHON=python3.12 (which Python), CUDA=1 (build for NVIDIA GPUs), VULKAN=1 (for others)"

$(ready): setup.cfg pyproject.toml constraints.txt scripts/setup scripts/steps.sh scripts/llama.sh \
    scripts/llama.cmake $(recheck)
	@scripts/setup

setup: $(ready)  ## make .venv with everything in it, llama.cpp included
	@echo "Ready: .venv/bin/mycelia"

demo: $(ready)  ## start a small swarm here and show what it does
	@.venv/bin/python examples/demo.py $(ARGS)

# A model that only tests use, under terms of its own: see setup.cfg.
$(gemma): setup.cfg | $(ready)
	@echo "Installing a second model for the tests (242 MB to download) ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 8 --constraint constraints.txt \
	    "$$(sed -n 's/^ *\(gemma3-[^ ]*==[^ ]*\)$$/\1/p' setup.cfg)"
	@touch $@

# Programs that only tests use: a browser, curl, and what makes routers of network namespaces.
$(programs): scripts/test-programs | $(ready)
	@scripts/test-programs
	@touch $@

$(js): tests/interop/js/package-lock.json
	@command -v npm >/dev/null || { echo "This needs Node.js 20 or newer, with npm: https://nodejs.org"; exit 1; }
	@echo "Installing js-libp2p for the tests (10 MB to download) ..."
	@npm ci --prefix tests/interop/js --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

$(clients): tests/interop/clients/package-lock.json
	@echo "Installing clients in JavaScript for the tests (55 MB) ..."
	@npm ci --prefix tests/interop/clients --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# (one of the two puts its program in place by a script)
$(agents): tests/interop/agents/package-lock.json
	@echo "Installing coding agents for the tests (220 MB to download) ..."
	@npm ci --prefix tests/interop/agents --no-audit --no-fund --loglevel=error
	@touch $@

$(pythons): tests/interop/python/install tests/interop/python/clients.txt | $(ready)
	@echo "Installing clients in Python for the tests (150 MB to download) ..."
	@tests/interop/python/install
	@touch $@

# What makes the site of the pages, apart from what the program needs.
$(site): scripts/site/requirements.txt | $(ready)
	@echo "Installing mkdocs-material (15 MB to download) ..."
	@.venv/bin/python -m venv --clear .venv/site
	@.venv/site/bin/python -m pip install --quiet --disable-pip-version-check --retries 8 --requirement $<
	@touch $@

# Chat templates and vocabularies of many models, from llama.cpp's sources.
$(models): scripts/test_models.py | $(ready)
	@.venv/bin/python scripts/test_models.py
	@touch -c $@

test: $(ready) $(gemma) $(models) $(programs)  ## run the tests, JOBS=4 at once; PYTEST_ARGS="-k radix" for some of them
	@.venv/bin/python -m pytest -n $(JOBS) $(dist) $(PYTEST_ARGS)

# The next three compile llama.cpp again, beside .venv, and keep it in .builds.
gpu-test: $(ready)  ## run the tests of GPUs without a GPU: Vulkan on the processor (8 CPU minutes to build, once)
	@scripts/gpu-test $(PYTEST_ARGS)

plugins := tests/node/engine/child/llama/test_plugins.py
cuda-build: $(ready)  ## compile for NVIDIA GPUs without a toolkit or a GPU, and load it (47 CPU minutes)
	@CUDA_ARCHS="$(or $(CUDA_ARCHS),86)" scripts/llama-build cuda
	@LLAMA_CPP_LIB_PATH=$(CURDIR)/.builds/cuda/lib .venv/bin/python -m pytest $(plugins) $(PYTEST_ARGS)
	@LLAMA_CPP_LIB_PATH=$(CURDIR)/.builds/cuda/lib .venv/bin/mycelia doctor --offline

generic-build: $(ready)  ## compile for many machines, as packages need it, and compare its speed (14 CPU minutes)
	@scripts/llama-build generic
	@LLAMA_CPP_LIB_PATH=$(CURDIR)/.builds/generic/lib .venv/bin/python -m pytest $(plugins) $(PYTEST_ARGS)
	@.venv/bin/python scripts/build_speed.py .builds/generic/lib $(ARGS)

coverage: $(ready) $(gemma) $(models) $(programs)  ## run the tests, say which lines none of them ran, and fail below the floors
	@rm -rf .coverage && mkdir .coverage
	@.venv/bin/python -m coverage run -m pytest -n $(JOBS) $(dist) --full $(PYTEST_ARGS)
	@.venv/bin/python -m coverage combine --quiet
	@echo "proto:" && .venv/bin/python -m coverage report --include='proto/*' --fail-under=97
	@echo "proto, sim and node:" && .venv/bin/python -m coverage report

check: $(ready)  ## lint, formatting, types, import rules, spelling; .pre-commit-config.yaml runs the same
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/mypy examples scripts
	MYPYPATH=packaging .venv/bin/mypy packaging/make_dist.py packaging/archive.py
	.venv/bin/lint-imports --no-logo
	.venv/bin/codespell
	.venv/bin/python scripts/english.py

docs: $(ready) $(site)  ## make a site of these pages in .site/html; a link that leads nowhere fails
	@.venv/bin/python scripts/site/make_site.py .venv/site/bin/mkdocs
	@echo "Made: .site/html/index.html; with search: python3 -m http.server --directory .site/html 8000"

# The official tests of JSON schema are in the sources of the Python package jsonschema.
schemas := .venv/schema-suite
$(schemas): $(ready)
	@rm -rf $@.new && mkdir $@.new
	@.venv/bin/python -m pip download -q --no-deps --no-binary :all: -d $@.new jsonschema==4.26.0
	@tar -xzf $@.new/jsonschema-4.26.0.tar.gz -C $@.new && rm -rf $@ && mv $@.new $@

nightly: $(ready) $(programs) $(schemas)  ## real nodes under faults, and the property tests with 3,000 examples each (tens of minutes)
	@.venv/bin/python -m pytest -m nightly --full $(PYTEST_ARGS)
	@.venv/bin/python -m pytest -n $(JOBS) $(dist) --full tests/bench tests/e2e tests/interop tests/node $(PYTEST_ARGS)
	@.venv/bin/python -m pytest tests/proto -m properties --hypothesis-profile=nightly \
		--hypothesis-show-statistics $(PYTEST_ARGS)
	@.venv/bin/python -m pytest tests/node/engine/child/llama/test_exact.py --full --exact-pairs 60 $(PYTEST_ARGS)
	@.venv/bin/python -m pytest tests/node/schemas/test_suite.py $(PYTEST_ARGS)

interop: $(ready) $(js) $(clients) $(agents) $(pythons)  ## run the tests with js-libp2p, many clients and coding agents, from npm and PyPI (needs Node.js)
	@.venv/bin/python -m pytest -m interop tests/interop $(PYTEST_ARGS)

lab: $(ready) $(programs)  ## run the tests behind routers made of network namespaces, JOBS=4 at once (needs root)
	@.venv/bin/python -m pytest -m lab -n $(JOBS) $(PYTEST_ARGS)

fuzz: N = 1000000
fuzz: $(ready)  ## hostile inputs for what strangers can reach, N=1000000 of them; SEED=1 for the same ones again
	@.venv/bin/python -m tests.fuzz.run --inputs $(N) $(if $(SEED),--seed $(SEED)) $(ARGS)

soak: MINUTES = 30
soak: $(ready)  ## real nodes under load, killed, asleep or cut off, MINUTES=30 of it: fails if anything grows
	@.venv/bin/mycelia bench soak --minutes $(MINUTES) $(ARGS)

month: $(ready)  ## a month of virtual time with much traffic and an hour awake each day: whether anything grows (minutes)
	@.venv/bin/python -m pytest --full -v tests/node/month $(PYTEST_ARGS)

mixed: $(ready)  ## a swarm of the last release and of this commit, killed and restarted for three minutes
	@.venv/bin/python -m pytest -m mixed tests/e2e $(PYTEST_ARGS)

dist: $(ready)  ## make the packages of this commit in dist/; ARGS=--python-only without the archive, GPU=vulkan with that
	@.venv/bin/python packaging/make_dist.py $(if $(GPU),--gpu $(GPU)) $(ARGS)

try:  ## try the packages in dist/ on a bare Debian, as a user would (needs root); ARGS="archive wheel" some of them
	@packaging/try-packages $(ARGS)

pythons: $(ready)  ## try the wheel in dist/ with Python 3.11 to 3.14; ARGS="3.12" one of them
	@packaging/try-pythons $(ARGS)

image:  ## build the container image of the archive in dist/ and try it; ARGS=--cuda for NVIDIA GPUs
	@packaging/image $(ARGS)

release-check: $(ready)  ## all of a release but its publication (an hour; needs root); ARGS=--rehearse before its commit
	@packaging/release-check $(ARGS)

lock:  ## write constraints.txt anew from setup.cfg; ARGS=--upgrade for the newest versions, too
	@scripts/lock $(ARGS)

format: $(ready)  ## format the code, fix what the linter can fix
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

node: $(ready)  ## run a node; ARGS="--help" for its options
	@.venv/bin/mycelia node $(ARGS)

swarm: $(ready)  ## run several nodes on this machine, N=4 of them
	@.venv/bin/mycelia swarm $(N) $(ARGS)

screenshot: $(ready) $(programs)  ## take the picture of the dashboard in docs/ anew, of a real swarm
	@PYTHONPATH=. .venv/bin/python scripts/screenshot.py $(ARGS)

evaluation: $(ready)  ## simulate all of docs/evaluation.md and write it (hours); ARGS="--quick" for a taste
	@.venv/bin/python -m mycelia.bench.evaluation.make $(ARGS)

clean:  ## remove .venv and every cache
	rm -rf .venv .site .builds build dist *.egg-info tests/interop/js/node_modules tests/interop/clients/node_modules tests/interop/agents/node_modules .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .fuzz .evaluation .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
