# Two commands: `make run` shows what the toolkit does, `make test` proves it. Everything else is for contributors.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
# one thread per test process: two processes of two threads each would fight for two cores
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -q -n $(JOBS)

.PHONY: help install run test test-all check format lint types bench clean

help:
	@echo "make run       install into $(VENV) and run the induction experiment on the model in the package"
	@echo "make test      install and run the tests (minutes)"
	@echo "make test-all  the tests with the long tier"
	@echo "make check     format, lint, types, and the tests with tensor shapes checked"
	@echo "make format    put the code into the house format"
	@echo "make bench     measure what the README claims about speed (about half an hour)"
	@echo "make clean     remove what the above made, $(VENV) included"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[check]"
	@touch $@

run: install
	$(BIN)/circuits run induction

test: install
	$(PYTEST) -m "not slow and not network and not gpu"

test-all: install
	$(PYTEST) -m "not network and not gpu"

check: lint types
	$(PYTEST) -m "not slow and not network and not gpu" --jaxtyping-packages=interp,circuits,probes,shape_checker.check

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: install
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
