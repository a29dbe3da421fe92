# Everything runs from a clone: each target installs what it needs into .venv and tests/node/node_modules.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := orqen_ray deployments tests

.DEFAULT_GOAL := help
.PHONY: help install demo serve test check bench bench-http

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

install: .venv/.stamp ## everything pinned, into .venv

demo: install ## start the gateway with its embedded provider, drive it with three SDKs, stop it
	$(BIN)/python -m deployments.demo

serve: install ## serve on ORQEN_HOST:ORQEN_PORT (127.0.0.1:8000) until Ctrl-C; ORQEN_CONFIG names the settings
	@exec $(BIN)/python -m deployments.serve

test: install tests/node/node_modules/.stamp ## all tests, on this machine only
	$(BIN)/python -m pytest

check: install ## lint, format, types, architecture
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

bench: install ## this gateway beside Portkey, LiteLLM and a bare proxy, as ratios; writes docs/benchmarks.md
	@command -v wrk >/dev/null || { test "$$(id -u)" = 0 && apt-get install -y -qq wrk >/dev/null 2>&1; } || true
	$(BIN)/python -m benchmarks.overhead

bench-http: install ## HTTP clients side by side: which one the forwarder uses, and why
	$(BIN)/python -m benchmarks.http_stack

.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Third-party programs of the conformance tests; without node, those tests skip and say so.
tests/node/node_modules/.stamp: tests/node/package.json tests/node/package-lock.json
	@if command -v npm >/dev/null; then cd tests/node && npm ci --no-audit --no-fund --loglevel=error; \
	else echo "npm is not here: tests that need it will skip"; mkdir -p tests/node/node_modules; fi
	@touch $@
