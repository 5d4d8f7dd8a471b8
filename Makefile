# `make quickstart` and `make test` are all that a first visit needs; `make help` lists the rest.

# The first interpreter on the path that runs and is new enough; `make PYTHON=/path/to/python ...` names another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
# torch is installed first, by itself, so that you choose its build. A plain `pip install torch` on a machine without a
# CPU build at hand pulls the CUDA libraries, several GB. Any pip arguments do: `make TORCH=torch quickstart`.
TORCH ?= torch==2.13.0
# More arguments for pytest and for the benchmarks: `make test ARGS='-k samplers'`.
ARGS ?=

RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip --disable-pip-version-check --quiet --quiet
export PIP_ROOT_USER_ACTION ?= ignore
# uv resolves and installs several times as fast as pip and keeps the installed torch. pip is used where uv fails, as
# it does where only pip is configured for the package index.
INSTALL = $(PIP) install uv && $(RUN)/uv pip install --quiet --python $(RUN)/python --editable '.[$(1)]' \
	|| $(PIP) install --editable '.[$(1)]'

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format docs bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed-test  ## train a small classifier on real cells
	$(RUN)/python examples/quickstart.py

test: $(VENV)/.installed-test  ## run the tests
	$(RUN)/python -m pytest -n auto $(ARGS)

lint: $(VENV)/.installed-dev  ## style, format, types, layers
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

format: $(VENV)/.installed-dev  ## rewrite the code in the project's format
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

docs: $(VENV)/.installed-dev  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict

bench: $(VENV)/.installed-test  ## measure cells per second on this machine
	$(RUN)/python benchmarks/run.py $(ARGS)

clean:  ## remove the environment and everything that the other targets make
	rm -rf $(VENV) site quickstart lightning_logs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find scdataloader tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in stages. Each stage leaves a stamp, so that it is done once and again when pyproject.toml changes.
$(VENV)/.torch:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer on the path; name one with make PYTHON=/path/to/python"; exit 1; }
	@echo "1/2 making $(VENV) with $(PYTHON) and installing $(TORCH)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-compile $(TORCH)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.torch pyproject.toml
	@echo "2/2 installing scdataloader and the tools of its tests into $(VENV) (a minute or two)"
	@$(call INSTALL,test)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	@echo "2/2 installing scdataloader and all development tools into $(VENV) (a minute or two)"
	@$(call INSTALL,dev)
	@touch $(VENV)/.installed-test $@
