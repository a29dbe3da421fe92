# Everything runs from a clone: each target installs what it needs into .venv and tests/node/node_modules.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := orqen_ray deployments tests

.DEFAULT_GOAL := help
.PHONY: help install demo serve test check clients bench bench-http bench-routing bench-traces

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

install: .venv/.stamp ## everything pinned, into .venv

demo: install ## start the gateway with its embedded provider, drive it with three SDKs, stop it
	$(BIN)/python -m deployments.demo

serve: install ## serve on ORQEN_HOST:ORQEN_PORT (127.0.0.1:8000) until Ctrl-C; ORQEN_CONFIG names the settings
	@exec $(BIN)/python -m deployments.serve

test: install clients ## all tests, on this machine only
	$(BIN)/python -m pytest

check: install ## lint, format, types, architecture
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

clients: tests/node/node_modules/.stamp tests/clients/.venv/.stamp ## third-party clients that the tests drive

bench: install ## this gateway beside Portkey, LiteLLM and a bare proxy, as ratios; writes docs/benchmarks.md
	@command -v wrk >/dev/null || { test "$$(id -u)" = 0 && apt-get install -y -qq wrk >/dev/null 2>&1; } || true
	$(BIN)/python -m benchmarks.overhead

bench-http: install ## HTTP clients side by side: which one the forwarder uses, and why
	$(BIN)/python -m benchmarks.http_stack

bench-routing: install ## what tool routing adds to a request, and the encoder beside its peer; writes docs/benchmarks-routing.md
	$(BIN)/python -m benchmarks.routing

bench-traces: install ## what a million rows cost the trace log
	$(BIN)/python -m benchmarks.traces

.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Third-party clients of the conformance tests, apart from the project's own environment. Where they cannot be installed
# (no node, no network), their tests skip and say so; with CI=true it is an error.
tests/node/node_modules/.stamp: tests/node/package.json tests/node/package-lock.json
	@if ! command -v npm >/dev/null; then echo "npm is not here: tests that need it will skip"; [ "$$CI" != true ]; \
	elif (cd tests/node && npm ci --no-audit --no-fund --loglevel=error); then touch $@; \
	else echo "npm ci failed: tests that need it will skip"; [ "$$CI" != true ]; fi

tests/clients/.venv/.stamp: tests/clients/requirements.txt | .venv/.stamp
	@rm -rf tests/clients/.venv
	@if $(PYTHON) -m venv --without-pip tests/clients/.venv && $(BIN)/pip --python tests/clients/.venv/bin/python install \
		--quiet --disable-pip-version-check --no-compile -r tests/clients/requirements.txt; then touch $@; \
	else echo "clients are not installed: their tests will skip"; rm -rf tests/clients/.venv; [ "$$CI" != true ]; fi
