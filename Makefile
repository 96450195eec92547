# Commands for a machine that has Python 3.10 or later, pip and make, and nothing else:
#
#   make demo    train a potential for methanol and run molecular dynamics with it
#   make test    run the test suite
#   make lint    check style, format and types
#   make docs    build the documentation site into build/site
#   make mutants put small faults into the code at random, and see whether the tests notice them
#
# Everything is installed into the folder .venv; a second call finds it there and starts at once.

PYTHON ?= python3

# What to give pip for PyTorch. It is installed first, so that no newer one is fetched with the other dependencies. On
# Linux, PyPI's PyTorch brings several gigabytes of CUDA libraries along; where there is no GPU, the CPU build is enough:
#   make demo TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'
TORCH ?= torch==2.13.0

# Arguments for the demo and for pytest, for example DEMO='--epochs 2' or TESTS='tests/laws -x'.
DEMO ?=
TESTS ?=

# Arguments for the random faults, for example MUTANTS='--mutants 20 --areas loss'.
MUTANTS ?=

# The inner loops are compiled on first use. Where there is no C compiler, one is installed as a Python package.
COMPILER := $(if $(shell command -v cc || command -v gcc || command -v clang),,[compiler])

VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format docs mutants clean
.DELETE_ON_ERROR:

demo: $(VENV)/.package
	$(BIN)/python examples/methanol/demo.py $(DEMO)

# One thread per worker: the tests are many and small, and two workers with two threads each would stand in their own way.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(TESTS)

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# links and anchors are checked on the way, and that pages load nothing from elsewhere
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	$(BIN)/python -m website.pages build/site

mutants: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m mutation $(MUTANTS)

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than 3.10; name another one, for example: make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	@touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.$(COMPILER)'
	@touch $@

$(VENV)/.test: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

# mypy needs the types of the libraries of tests and of the site too
$(VENV)/.lint: $(VENV)/.test $(VENV)/.docs
	$(BIN)/python -m pip install --quiet --editable '.[lint]'
	@touch $@
