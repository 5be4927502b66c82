# Everything happens in .venv; `make demo` and `make test` are all that a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test unit lint format benchmark clean help

help:
	@echo "make demo       set up and train on a year of real flights (about a minute)"
	@echo "make test       set up and run all tests"
	@echo "make unit       only the tests that start no processes"
	@echo "make lint       ruff and mypy"
	@echo "make benchmark  the figures of the README (about 40 minutes, on a quiet machine)"
	@echo "make clean      remove .venv and what the tools left"

demo: $(VENV)/.demo
	$(BIN)/tensair run flights

test: $(VENV)/.test
	$(BIN)/python -m pytest

unit: $(VENV)/.test
	$(BIN)/python -m pytest -m "not processes"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/.test
	$(BIN)/python benchmarks/training.py

$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,test]"
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
