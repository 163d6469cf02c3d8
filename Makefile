# Two commands do everything on a machine with Python 3.11: `make demo` and `make test` (which also wants a JDK and Maven).
PYTHON ?= python3.11
BIN := .venv/bin
INSTALL := $(BIN)/pip install -q -c constraints.txt
ON_ALL_CORES := -n logical --dist loadscope
# Two tests at once, each with a broker of its own: much of their time is waiting.
ON_TWO_BROKERS := -n 2 --durations 10

.PHONY: demo test lint fast slow broker kafka check coverage bench chaos fuzz encoder clean
demo: .venv/demo.stamp
	$(BIN)/currents demo $(ARGS)

test: lint fast slow broker kafka

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks testkit

# A test has one core, and a thread that waits for another takes it from the test beside it.
fast slow coverage: export OMP_NUM_THREADS := 1

fast: .venv/test.stamp
	$(BIN)/pytest $(ON_ALL_CORES)

slow: .venv/test.stamp
	$(BIN)/pytest -m slow $(ON_ALL_CORES)

broker: .venv/test.stamp
	$(BIN)/pytest -m broker $(ON_TWO_BROKERS) --dist loadscope

kafka: .venv/test.stamp
	@command -v java >/dev/null && command -v mvn >/dev/null || { echo "tests of tier kafka need java and mvn on the PATH"; exit 1; }
	$(BIN)/pytest -m kafka $(ON_TWO_BROKERS) --dist worksteal

check: lint fast

# What the fast tests reach, line by line: build/coverage/index.html.
coverage: .venv/test.stamp
	$(BIN)/pytest $(ON_ALL_CORES) --cov schemas --cov encoder --cov training --cov streams --cov-report term --cov-report html:build/coverage

chaos: .venv/test.stamp
	@command -v java >/dev/null && command -v mvn >/dev/null || { echo "chaos needs java and mvn on the PATH"; exit 1; }
	$(BIN)/python -m tests.chaos $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

# Random and mutated rows into every topic of a running cluster, for ten minutes: ARGS="--seconds 60 --seed 2".
fuzz: .venv/test.stamp
	$(BIN)/python -m tests.fuzz.fuzz_cluster $(ARGS)

bench: .venv/test.stamp
	$(BIN)/python -m benchmarks $(ONLY)

# The demo's encoder again: users of another seed than the demo's, on the demo's items. A few minutes on one core.
encoder: .venv/test.stamp
	rm -rf build/encoder encoder/data/demo
	$(BIN)/currents world build/encoder/world --seed 7 --users 3000 --events 200000 --until 2025-01-01
	$(BIN)/currents train build/encoder/world --config build/encoder/world/currents.toml --out build/encoder/bundle
	$(BIN)/currents export --model build/encoder/bundle --out encoder/data/demo --no-weights

clean:
	rm -rf .venv .peers .kafka build *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e ".[demo]"
	touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e ".[demo,train,dev]"
	touch $@ .venv/demo.stamp
