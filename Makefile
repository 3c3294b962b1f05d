# Everything that a fresh clone needs: `make simulate` and `make test` set themselves up. Works with plain pip; PYTHON chooses the Python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTHONS := 3.11 3.12 3.13
DOWNLOAD := about 6 GB on disk, most of it torch; some minutes

# No library below us calls home or installs anything at run time.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Large pages for tensors, as our processes give them to those that they start.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install simulate federation test test-all test-pythons test-wheel test-mutations lint format docs doctor bench-simulation bench-privacy bench-accuracy bench-heart bench-federation bench-data failures soak clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## The virtual environment, if it is not there or not current

# The stamp is the last thing written: an install that failed is tried again.
$(INSTALLED): pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "Wardround needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is not one of them; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "Installing Wardround and its libraries into $(VENV) ($(DOWNLOAD)) ..."
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Installed."

simulate: $(INSTALLED) ## Run the first study: four hospitals, private training, a report; no download
	@$(BIN)/wardround-sim run quickstart --workers 2

federation: $(INSTALLED) ## A coordinator and three hospitals on this machine: enrolment, approval, three rounds; no download
	@$(BIN)/wardround-sim federation

test: $(INSTALLED) ## The tests, without the slow ones
	@$(BIN)/python -m pytest -m "not slow"

test-all: $(INSTALLED) ## All tests
	@$(BIN)/python -m pytest

test-pythons: ## The tests on each supported Python that is installed here
	@for version in $(PYTHONS); do \
	  if ! python$$version -c '' 2>/dev/null; then echo "Python $$version is not installed: skipped"; continue; fi; \
	  echo "Python $$version:"; \
	  $(MAKE) --no-print-directory test PYTHON=python$$version VENV=.cache/venv-$$version; \
	done

test-wheel: $(INSTALLED) ## The tests against a built wheel, outside the checkout
	@PYTHON="$(abspath $(BIN))/python" bash tests/run_from_wheel.sh

test-mutations: $(INSTALLED) ## Break the privacy of the code on purpose, mistake by mistake: each must turn a test red
	@$(BIN)/python -m tests.mutations

lint: $(INSTALLED) ## Style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(INSTALLED) ## Lay out the code
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

docs: $(INSTALLED) ## Write docs/study.md and the study's JSON schema anew
	@$(BIN)/python -m common.study_docs

doctor: $(INSTALLED) ## Python, libraries, device, threads, memory, disk
	@$(BIN)/wardround-sim doctor

bench-simulation: $(INSTALLED) ## Ratios: our simulation, a plain loop, Flower's own simulation
	@$(BIN)/python -m tests.bench.simulation

bench-privacy: $(INSTALLED) ## Time and memory of private training, engine by engine, beside plain training; ARGS="time" does one part
	@$(BIN)/python -m tests.bench.privacy $(ARGS)

bench-accuracy: $(INSTALLED) ## Accuracy on public chest X-rays into docs/results.md; over an hour; ARGS="--rows cnn-e1 --seeds 0" cuts it
	@$(BIN)/python -m tests.bench.accuracy $(ARGS)

bench-heart: $(INSTALLED) ## Accuracy on the heart disease tables of four real hospitals into docs/heart.md; ARGS="--levels e1 --runs 2" cuts it
	@$(BIN)/python -m tests.bench.heart $(ARGS)

bench-federation: $(INSTALLED) ## Seconds a round and memory of a real federation, beside plain Flower's; ARGS="memory" does one part
	@$(BIN)/python -m tests.bench.federation $(ARGS)

bench-data: $(INSTALLED) ## A hospital's files: decoding, the cached cohort beside it, an epoch, the check; ARGS="decode" does one part
	@$(BIN)/python -m tests.bench.data $(ARGS)

failures: $(INSTALLED) ## Cause every fault on real processes and write docs/failures.md from what was seen; ARGS="-k gateway" does a part
	@$(BIN)/python -m tests.e2e.failures $(ARGS)

soak: $(INSTALLED) ## 200 rounds of a real federation while its processes are killed, up to 30 minutes; ARGS="--rounds 20 --runs 2 --kills 6"
	@$(BIN)/python -m tests.bench.soak $(ARGS)

clean: ## Remove the virtual environment, builds and caches; runs/ stays
	@rm -rf $(VENV) .cache build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
