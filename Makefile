# Every target sets up what it needs: Python 3.11 or newer and make are enough.
# Another interpreter: make install PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install quickstart format lint quick check test bench clean broken

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(READY) ## .venv with raycl and the tested versions of everything it needs

quickstart: $(READY) ## the sweep sweeps/quickstart.yaml, and its table
	$(BIN)/raycl run sweeps/quickstart.yaml

format: $(READY) ## format the code, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY) ## format, lint, types, and which package may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The first call runs every test, to learn in .testmondata which functions each of them runs.
quick: $(READY) ## the tests that a change can affect
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --testmon --testmon-forceselect

check: lint quick ## lint and quick: before each commit

test: $(READY) ## all tests but the slow ones (pytest -m slow)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder \
	  --durations=30

bench: $(READY) ## the performance tests and their figures
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/perf -m perf -s

clean: ## remove .venv and caches; keeps runs/ and data/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .testmondata* build *.egg-info

# An environment that was not finished, was moved here, or whose interpreter has gone is made anew.
OLDER := import sys; sys.exit(sys.version_info < (3, 11))
USABLE := [ "$$(cat $(READY) 2>/dev/null)" = "$$(pwd)" ] && $(BIN)/python -c '' 2>/dev/null
ifneq ($(shell $(USABLE) && echo yes),yes)
$(READY): broken
endif

# uv comes from pip. It resolves torch and torchvision together, which pip may not, and compiles
# byte-code once, without which every Ray worker starts three times as slowly.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(OLDER)' || { echo "raycl needs Python 3.11 or newer, which '$(PYTHON)' is not:" \
	  "make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@{ $(USABLE); } || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[dev]'
	@pwd > $@
