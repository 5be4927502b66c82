# Everything happens in .venv; `make demo` and `make test` are all that a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that run tests, for two cores: each of them also waits now and then.
JOBS ?= 3

# What depends most on the versions below us, and needs neither processes nor extras.
LOWEST := $(VENV)-lowest
LOWEST_TESTS := tests/checkpoints tests/observe/dashboard/test_dashboard_charts.py tests/exchange/test_codec.py \
	tests/exchange/test_exchange.py tests/exchange/test_wire.py tests/streams/sources/test_csv_rows.py \
	tests/streams/sources/test_files_source.py tests/batches/test_batches.py tests/replica/test_learner.py tests/streams/test_streamz_patches.py \
	tests/common/plain_values/test_plain_state.py tests/observe/figures/test_score_figure.py tests/streams/test_train.py tests/text/test_vocabulary.py

# Packages that contradict each other and ours; only benchmarks/sustainable.py uses them.
HEAVY := $(VENV)-benchmark

.PHONY: demo test test-lowest unit lint format docs wheel benchmark benchmark-docs benchmark-env clean help

help:
	@echo "make demo       set up and train on a year of real flights (about a minute)"
	@echo "make test       set up and run all tests"
	@echo "make test-lowest  some tests with the lowest versions allowed (downloads gigabytes)"
	@echo "make unit       only the tests that start no processes"
	@echo "make lint       ruff, mypy and the layers of imports"
	@echo "make docs       the documentation, in build/docs/index.html"
	@echo "make wheel      the wheel, in dist/, tried in a fresh environment"
	@echo "make environment.yml  for conda, from pyproject.toml"
	@echo "make benchmark  the throughput table of docs/benchmarks (25 to 40 minutes, on a quiet machine)"
	@echo "make benchmark-docs  write that table into docs/benchmarks, from build/training.json or anew"
	@echo "make benchmark-env  what the other systems in benchmarks/sustainable.py need, in .venv-benchmark (2.7 GB)"
	@echo "make clean      remove .venv and what the tools left"

demo: $(VENV)/.demo
	$(BIN)/tensair run flights

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

test-lowest: $(LOWEST)/.test
	$(LOWEST)/bin/python -m pytest -m "not processes" $(LOWEST_TESTS)

unit: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not processes"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs
	@echo "build/docs/index.html"

wheel:
	$(PYTHON) tools/try_wheel.py

environment.yml: pyproject.toml tools/environment.py
	$(PYTHON) tools/environment.py > $@.new
	mv $@.new $@

benchmark: $(VENV)/.test
	mkdir -p build
	$(BIN)/python benchmarks/training.py --json build/training.json

build/training.json:
	$(MAKE) benchmark

benchmark-docs: build/training.json
	$(PYTHON) tools/benchmark_table.py build/training.json docs/benchmarks/index.md

benchmark-env: $(VENV)/.test $(HEAVY)/.done
	@command -v java > /dev/null || echo "Spark and Flink need Java 17: apt-get install openjdk-17-jre-headless"

$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,test]"
	touch $@ $(VENV)/.demo

$(VENV)/.docs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

$(LOWEST)/.test: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet -c constraints-lowest.txt -e . pytest pytest-timeout
	touch $@

$(HEAVY)/.done: benchmarks/requirements.txt benchmarks/requirements-no-deps.txt
	test -x $(HEAVY)/bin/python || $(PYTHON) -m venv $(HEAVY)
	$(HEAVY)/bin/python -m pip install --quiet -r benchmarks/requirements.txt
	$(HEAVY)/bin/python -m pip install --quiet --no-deps -r benchmarks/requirements-no-deps.txt
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(HEAVY) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache docs/reference/api
