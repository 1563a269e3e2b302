# One command for each thing. `make demo` and `make test` need Python 3.11 or later, git and make, and set up the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

UV := uv==0.13.9
VENV := .venv
BIN := $(VENV)/bin
# uv lives beside the environment that it fills, so that a sync never removes it.
UV_BIN := $(VENV)/tools/bin/uv
READY := $(VENV)/.ready
CODE := $(wildcard src tests bench docs)
N ?= 20

.PHONY: help demo test check docs format bench torture lock clean

help: ## What there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY) ## Two databases, a broker and one story with real processes
	@$(BIN)/taskpass demo

test: check ## Everything: the checks, then every test
	@$(BIN)/python -m tests.postgres17
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

check: $(READY) ## Lint, format, types, direction of imports
	@$(BIN)/ruff check --quiet $(CODE)
	@$(BIN)/ruff format --check --quiet $(CODE)
	@$(BIN)/pyright --level error
	@$(BIN)/lint-imports --no-cache > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }
	@$(BIN)/python -m pytest -q tests/unit/docs

docs: $(READY) ## Write the reference pages that are made from the code
	@$(BIN)/python docs/generate.py

format: $(READY) ## Write the code as the formatter wants it
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

bench: $(READY) ## The published figures, each beside its limit
	@$(BIN)/python -m bench

torture: $(READY) ## Kill the broker N times on each kind of store (make torture N=1000)
	@$(BIN)/python -m tests.torture --kills $(N)
	@$(BIN)/python -m tests.torture --kills $(N) --store postgres

lock: $(READY) ## Resolve the dependencies again, with hashes
	@$(UV_BIN) pip compile --quiet --universal --generate-hashes --no-header \
		--python-version 3.11 --extra demo --group dev --output-file requirements.lock pyproject.toml

clean: ## Remove the environment and every cache
	@rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Once, and again when the lock, the project's metadata or this file changes. The build backend is in the lock, so that
# building the project fetches nothing that has no hash.
$(READY): requirements.lock pyproject.toml Makefile
	@python=""; \
	for candidate in python3 python3.13 python3.12 python3.11; do \
		if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "Taskpass needs Python 3.11 or later; no python3 here is that new" >&2; exit 1; fi; \
	if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "this Python cannot make environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; fi; \
	echo "setting up $(VENV) (once)" >&2; \
	test -x $(BIN)/python || $$python -m venv --without-pip $(VENV); \
	if [ "$$($(UV_BIN) --version 2>/dev/null | cut -d' ' -f1,2)" != "$(subst ==, ,$(UV))" ]; then \
		rm -rf $(VENV)/tools; $$python -m venv $(VENV)/tools; \
		$(VENV)/tools/bin/python -m pip install --quiet --disable-pip-version-check $(UV); fi
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV_BIN) pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV_BIN) pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
