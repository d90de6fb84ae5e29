# `make star` and `make test` do all the set-up by themselves, once, and need Python >= 3.10 alone.
#   make star ARGS="--limit 20"               flags of the main job
#   make PYTHON=python3.12 test               another interpreter
#   make PIP_FLAGS="--extra-index-url URL"    another package index, such as PyTorch's own for CPU builds

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
ARGS ?=

BIN := $(VENV)/bin
SETUP := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help setup star test test-slow lint clean

help:
	@echo "make star | test | test-slow | lint | setup | clean"

setup: $(SETUP)

$(SETUP): setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "segenv needs Python >= 3.10; give one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[all,dev]"
	@touch $@

star: $(SETUP)
	$(BIN)/python -m experiments.star $(ARGS)

test: $(SETUP)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(SETUP)
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis
