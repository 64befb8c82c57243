# make reproduce: set up and run the experiments;  make test: set up and run every check.
# make docs: set up and build the site in site/, with the notebooks executed.
# make bench: the benchmarks beside other packages, ARGS=--full for all of it.
# make lowest: try the lowest versions of the core dependencies.
# Needs Python 3.11 or newer and make, nothing else. PYTHON=python3.13 make ... picks another one.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOWEST := .venv-lowest
STAMP  := $(VENV)/.installed
# With as many threads jaxlib's pool does not wait for itself (experiments/benchmarks/thread_pool.py).
export NPROC ?= 16

.PHONY: reproduce results bench manual docs lowest test check clean

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

# Each worker has a core to itself: threads of two would wait for each other.
check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# The core with the lowest versions that pyproject.toml allows, in an environment of its own.
lowest:
	rm -rf $(LOWEST) && $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --python $(LOWEST)/bin/python \
	  --no-header --output-file $(LOWEST)/lowest.txt pyproject.toml
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python \
	  --requirements $(LOWEST)/lowest.txt --no-deps .
	$(LOWEST)/bin/uv pip check --python $(LOWEST)/bin/python
	mkdir $(LOWEST)/smoke && cd $(LOWEST)/smoke && ../bin/python $(CURDIR)/tests/smoke.py

docs: $(STAMP)
	EXECUTE_NOTEBOOKS=1 $(BIN)/mkdocs build --strict

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(LOWEST) results site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
