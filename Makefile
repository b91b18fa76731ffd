# Every target runs in .venv, which the first one makes from pyproject.toml and constraints.txt.

# `make demo KERAS_BACKEND=torch` picks the backend of the demo; the tests run on each of BACKENDS.
export KERAS_BACKEND ?= jax
BACKENDS ?= jax tensorflow torch
PYTEST_ARGS ?=

SHELL := bash
export TF_CPP_MIN_LOG_LEVEL ?= 3
# The first of these that runs and is new enough makes the environment.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test test-all check

demo: .venv/installed
	.venv/bin/python examples/demo.py

# Two processes for each backend, two at a time: with one, a core would be idle while the last backend runs.
HALVES := a-g h-z
RUNS = $(foreach backend,$(BACKENDS),$(HALVES:%=$(backend).%))

test: .venv/installed
	@$(MAKE) --no-print-directory -k -j2 --output-sync=target $(RUNS:%=test-%); failed=$$?; \
	for run in $(RUNS); do echo "$$run: $$(grep -E ' in [0-9.]+s' build/test-$$run.log | tail -n 1 | tr -d =)"; done; \
	exit $$failed

# `make test-jax.a-g`: the files of these letters on this backend.
test-%: .venv/installed
	@mkdir -p build; set -o pipefail; \
	KERAS_BACKEND=$(basename $*) .venv/bin/python -m pytest $(PYTEST_ARGS) \
		tests/test_[$(patsubst .%,%,$(suffix $*))]*.py 2>&1 | tee build/test-$*.log

# With the tests that take minutes or download something.
test-all: .venv/peers
	@$(MAKE) test PYTEST_ARGS="-m ''"

check: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with PYTHON=..."; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "Installing kerasllm and its dependencies into .venv (minutes, once)"
	@# --use-pep517: seqeval has no wheel, and pip before 25.3 builds it in the environment, where that fails.
	@.venv/bin/python -m pip install -qq --use-pep517 -c constraints.txt -e '.[all,dev]'
	@touch $@

.venv/peers: .venv/installed
	@.venv/bin/python -m pip install -qq -c constraints.txt -e '.[peers]'
	@touch $@
