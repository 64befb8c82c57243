# make reproduce: set up and run the experiments;  make test: set up and run every check.
# make docs: set up and build the site in site/, with the notebooks executed.
# make bench: the benchmarks beside other packages, ARGS=--full for all of it.
# Needs Python 3.11 or newer and make, nothing else. PYTHON=python3.13 make ... picks another one.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# With as many threads jaxlib's pool does not wait for itself (experiments/benchmarks/thread_pool.py).
export NPROC ?= 16

.PHONY: reproduce results bench manual test check docs clean

reproduce: $(STAMP)
	$(BIN)/perfalign reproduce $(ARGS)

results: $(STAMP)
	$(BIN)/python experiments/_kit/results.py

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python experiments/benchmarks/fit.py $(ARGS)
	$(BIN)/python experiments/benchmarks/peers.py $(ARGS)

manual: $(STAMP)
	$(BIN)/python experiments/_kit/manual.py

test: check

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal

docs: $(STAMP)
	EXECUTE_NOTEBOOKS=1 $(BIN)/mkdocs build --strict

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) results site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
