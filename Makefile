# Everything here sets itself up on first use: only python3 (3.11 or newer) and make are assumed.
#
#   make demo      reconstruct a digit from compressed measurements; the picture lands in out/
#   make test      all tests but the slow ones        make test-all  the slow ones too
#   make lint      format, rules, types, spelling, links, as CI checks them
#   make format    let ruff format the code         make types     type check alone
#   make wheel     source archive and wheel in dist/
#   make clean     remove what was built            make distclean remove .venv too
#
# PYTHON=python3.12 chooses the interpreter, PIP_ARGS="..." is handed to every `pip install`.

PYTHON ?= python3
PIP_ARGS ?=
OUT ?= out

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --no-input --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
# The links models/ and inference/ show the same files a second time, so tools get named paths.
CODE := bayesgen tests examples benchmarks
PROSE := $(wildcard *.md) docs NOTICE CITATION.cff
export MPLBACKEND := Agg

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format types links wheel setup clean distclean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,/^PYTHON=/p'

demo: $(VENV)/.installed
	$(BIN)/python examples/compressed_sensing.py --out $(OUT)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev types links
	$(BIN)/ruff format --check $(CODE) .ci
	$(BIN)/ruff check $(CODE) .ci
	$(BIN)/codespell $(CODE) $(PROSE)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix --select I $(CODE) .ci
	$(BIN)/ruff format $(CODE) .ci

types: $(VENV)/.installed-dev
	$(BIN)/mypy bayesgen

links: $(VENV)/.installed-dev
	$(BIN)/python .ci/check_links.py $(PROSE)

# The wheel is made from the source archive, so that a file missing from the archive shows.
wheel: $(VENV)/.installed-dev
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .

setup: $(VENV)/.installed-dev

# Redone whenever a file that decides what is installed changes; an existing environment is brought
# up to date, never thrown away. torch goes first: it is the one large download, and its exact
# version decides the rest.
$(VENV)/.installed: pyproject.toml constraints.txt bayesgen/_version.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "bayesgen needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Install one, or name it: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12"; exit 1; } >&2
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot create virtual environments: its modules venv and ensurepip are missing."; \
	  echo "On Debian and Ubuntu they come with the package python3-venv."; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	@touch $@

clean:
	rm -rf build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
