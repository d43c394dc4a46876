# Everything a contributor types. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVERS ?=
CELLS ?= quick
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= http2 header_block message exchange request answer_body page metrics_answer configuration endpoints

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# What the demo needs is a third of what the tests need: a stranger waits for no linters.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; set PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements/demo.txt | $(BIN)/python
	@echo "setting up $(VENV) (once, about half a minute)"
	@$(INSTALL) -r requirements/demo.txt
	@$(INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/.ready: requirements/dev.txt $(VENV)/.demo
	@echo "adding what the tests need to $(VENV) (once, about half a minute)"
	@$(INSTALL) -r requirements/dev.txt
	@touch $@

.PHONY: setup
setup: $(VENV)/.ready  ## create the virtual environment

.PHONY: demo
demo: $(VENV)/.demo  ## Envoy, picker, four model servers, live traffic, a table (SERVERS=host:port,... for real ones)
	@$(BIN)/python -m bench.demo $(if $(SERVERS),--servers $(SERVERS))

.PHONY: lint
lint: $(VENV)/.ready  ## ruff, mypy strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: test
test: lint  ## lint and all tests (real Envoy included)
	@$(BIN)/pytest

.PHONY: test-faults
test-faults: $(VENV)/.ready  ## every fault in every phase of a request, against docs/failure-modes.md (3 minutes)
	@$(BIN)/python -m tests.faults

.PHONY: bench
bench: $(VENV)/.ready  ## CPU per request, per chunk, idle, memory against the budgets
	@$(BIN)/python -m bench.cost
	@$(BIN)/python -m bench.flow

.PHONY: lab
lab: $(VENV)/.ready  ## every routing policy on every trace under virtual time, a page with plots (CELLS=quick: minutes, standard: an hour, full: hours)
	@$(BIN)/python -m bench.lab $(CELLS)

.PHONY: lab-live
lab-live: $(VENV)/.ready  ## two of the lab's cells in real time through Envoy, beside the lab's own numbers (4 minutes)
	@$(BIN)/python -m bench.lab.live

.PHONY: bench-pressure
bench-pressure: $(VENV)/.ready  ## time to first token by priority and tenant at twice the load, with and without flow control (4 minutes)
	@$(BIN)/python -m bench.pressure

.PHONY: test-vllm
test-vllm: $(VENV)/.ready  ## the same against two real vLLM servers on CPU (installs 6 GB)
	@tests/vllm/run

.PHONY: test-gateway
test-gateway: $(VENV)/.ready  ## the same through a real Envoy Gateway (needs Go, which builds it in 3 minutes)
	@$(BIN)/pytest -m gateway tests/gateways

.cache/fuzz/.ready: requirements/fuzz.txt
	@$(PYTHON) -m venv .cache/fuzz/venv
	@.cache/fuzz/venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/fuzz.txt
	@touch $@

.PHONY: fuzz
fuzz: .cache/fuzz/.ready  ## fuzz what reads foreign bytes (FUZZ_SECONDS=600 each of FUZZ_TARGETS="http2 ...", all by default)
	@for target in $(FUZZ_TARGETS); do .cache/fuzz/venv/bin/python -m tests.fuzz $$target $(FUZZ_SECONDS) || exit 1; done

.PHONY: format
format: $(VENV)/.ready  ## format the code, write generated files anew
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/python -m epp.drops > docs/outcomes.md
	@$(BIN)/epp schema > config/schema.json

.PHONY: charts
charts: $(VENV)/.ready  ## render the Helm charts anew into tests/data/helm and deploy/manifests (needs Go)
	@$(BIN)/python -m tests.charts

.PHONY: lock
lock:  ## resolve requirements/*.txt anew from pyproject.toml
	@$(PYTHON) -m venv .cache/lock && .cache/lock/bin/pip install --quiet uv
	@.cache/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate pyproject.toml -o requirements/run.txt
	@.cache/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --extra test -c requirements/run.txt pyproject.toml -o requirements/dev.txt
	@.cache/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --extra demo -c requirements/dev.txt pyproject.toml -o requirements/demo.txt
	@.cache/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --extra fuzz -c requirements/run.txt pyproject.toml -o requirements/fuzz.txt

.PHONY: clean
clean:  ## remove what the targets made
	@rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
