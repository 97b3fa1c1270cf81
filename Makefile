# make demo   a small study from nothing to its report (about 8 minutes on 2 cores)
# make reverts  bring known faults back one by one and see their tests fail
# make check  lint, types and the whole test suite, with a real PostgreSQL among its back ends
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Waiting threads that spin make a shared machine crawl.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: demo reverts check lint format types test docs clean

demo: $(VENV)/.installed
	$(BIN)/lowrank study run studies/demo.yaml --launcher processes --workers 2
	@$(BIN)/lowrank query perplexity --param study=demo --db sqlite:///outputs/demo/lowrank.db
	@echo "report: outputs/demo/report/index.html"

check: lint types test

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check --quiet . || { echo "make format formats these files:"; $(BIN)/ruff format --check .; exit 1; }
	$(BIN)/ruff check .

format: $(VENV)/.installed-test
	$(BIN)/ruff format .

types: $(VENV)/.installed-test
	$(BIN)/mypy

# One thread a worker: more threads than cores collapse.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $${TEST_WORKERS:-2} --dist loadfile

# Known faults, brought back one by one in copies of the checkout: each must be noticed by its test.
reverts: $(VENV)/.installed-test
	$(BIN)/python tests/faults/reverts/check.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
