# Two commands: `make train` trains the quickstart, `make test` checks everything.
CONFIG ?= configs/quickstart.yaml
ARGS ?=
PYTHON ?= python3
BIN := .venv/bin
# pytest-xdist workers; one torch thread each, so that two tests do not fight for two cores.
WORKERS ?= auto

.PHONY: help venv train test test-all lint compatibility evidence evidence-full clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: .venv/.installed  ## create .venv and install everything into it

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: venv  ## train; CONFIG=file.yaml chooses what, ARGS="..." overrides single values
	$(BIN)/python train.py --config $(CONFIG) $(ARGS)

lint: venv  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, types and the quick tests (minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m 'not full' --durations=15

test-all: lint  ## the same with the complete contract tables
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --durations=15

compatibility: venv  ## run every row of docs/compatibility.md and write it anew
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --compatibility=docs/compatibility.md tests

evidence: venv  ## rerun the headline of docs/evidence.md: 14 arms, 5 seeds, 3 settings; an hour or two
	$(BIN)/python -m benchmarks.evidence.suite --suite headline
	$(BIN)/python -m benchmarks.evidence.tables

evidence-full: venv  ## rerun all of it, as often as it takes; ARGS=--fill: only rows that are missing
	$(BIN)/python -m benchmarks.evidence.suite --suite full $(ARGS)
	$(BIN)/python -m benchmarks.evidence.tables

clean:  ## remove the environment and caches, keep the runs
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
