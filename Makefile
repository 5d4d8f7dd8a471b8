# Start with `make quickstart` and `make test`; `make help` lists all targets.

# The first interpreter on the path of Python 3.11 or newer; `make PYTHON=/path/to/python ...` selects another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
# torch is installed first, so that you can choose its build by any arguments of pip: `make TORCH=torch quickstart`.
# On Linux, the default build of PyPI includes the CUDA libraries, several GB.
TORCH ?= torch==2.13.0
# Further arguments of pytest and of the benchmarks: `make test ARGS='-k samplers'`.
ARGS ?=
# Libraries that take our batches. Each has tests in tests/consumers, and an environment in .venvs with the extra of its
# name, because some exclude each other's requirements, or ours.
CONSUMERS := scvi scprint cellarium frameworks
# Further extras of an environment.
EXTRAS_scvi := soma

RUN := $(VENV)/bin
comma := ,
space := $(subst ,, )
# On a terminal, pip and uv show what they download; elsewhere, only errors.
QUIET := $(shell test -t 2 || echo --quiet)
PIP := $(RUN)/python -m pip --disable-pip-version-check $(QUIET) $(QUIET)
export PIP_ROOT_USER_ACTION ?= ignore
# Bytecode is kept: without it, every process that a test starts compiles torch and Lightning anew, for ten seconds.
unexport PYTHONDONTWRITEBYTECODE
# uv resolves and installs several times as fast as pip and keeps the installed torch. pip is used where uv fails, as
# it does where only pip is configured for the package index.
INSTALL = $(PIP) install uv && $(RUN)/uv pip install $(QUIET) --python $(RUN)/python $(1) || $(PIP) install $(1)

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-consumers $(CONSUMERS:%=test-%) lint format docs bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed-test  ## train a small classifier on real cells
	$(RUN)/python examples/quickstart.py

test: $(VENV)/.installed-test  ## run the tests
	$(RUN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder $(ARGS)

test-consumers: $(CONSUMERS:%=test-%)  ## run the tests with other libraries: test-scvi, test-scprint, ...

# Warnings of other libraries are shown, but are not errors.
$(CONSUMERS:%=test-%): test-%:
	@$(MAKE) --no-print-directory VENV=.venvs/$* .venvs/$*/.installed-$*
	.venvs/$*/bin/python -m pytest -W default tests/consumers/$* $(ARGS)

lint: $(VENV)/.installed-dev  ## check style, format, types and layers
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

format: $(VENV)/.installed-dev  ## format the code and apply automatic fixes
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

docs: $(VENV)/.installed-dev  ## build the documentation into site/
	$(RUN)/sphinx-build --fail-on-warning --keep-going --doctree-dir site/.doctrees $(QUIET) docs site

bench: $(VENV)/.installed-test  ## measure cells per second on this machine
	$(RUN)/python benchmarks/run.py $(ARGS)

clean:  ## remove the environments and all outputs of the other targets
	rm -rf $(VENV) .venvs site jupyter_execute quickstart lightning_logs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find scdataloader tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in stages. Each stage has a stamp file, so that it runs once, and again when pyproject.toml changes.
$(VENV)/.torch:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer on the path; select one by make PYTHON=/path/to/python"; exit 1; }
	@echo "1/2 creating $(VENV) with $(PYTHON) and installing $(TORCH), the largest requirement"
	@echo "    (the build for CPUs: 190 MB to download, 700 MB installed; a build with CUDA: several GB)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-compile $(TORCH)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.torch pyproject.toml
	@echo "2/2 installing scdataloader, its other requirements (about 1 GB installed) and the tools of its tests into $(VENV)"
	@echo "    (a minute or two, silent where the output is not a terminal)"
	@$(call INSTALL,--editable '.[test]')
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	@echo "2/2 installing scdataloader and all development tools into $(VENV) (a minute or two)"
	@$(call INSTALL,--editable '.[dev]')
	@touch $(VENV)/.installed-test $@

# A consumer whose requirements exclude ours lists itself, and what it needs of them, in no-deps.txt.
$(CONSUMERS:%=$(VENV)/.installed-%): $(VENV)/.installed-%: $(VENV)/.torch pyproject.toml $(wildcard tests/consumers/*/no-deps.txt)
	@echo "2/2 installing scdataloader and $* into $(VENV) (a minute or two)"
	@$(call INSTALL,--editable '.[$(subst $(space),$(comma),$(strip $* $(EXTRAS_$*) test-tools))]')
	@if test -e tests/consumers/$*/no-deps.txt; then $(call INSTALL,--no-deps -r tests/consumers/$*/no-deps.txt); fi
	@touch $@
