# vNPU: what can be typed here. `make` alone says it too.
PYTHON := $(shell for p in python3.11 python3; do \
    $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done || echo python3)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
WORKERS := 2
# a file stays with one worker, which keeps its engines; those with engines come first, as they are collected
BOTH := $(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder
ROUNDS := 20
SEEDS := 500

.DEFAULT_GOAL := help
.PHONY: help doctor setup demo test test-system campaign sim mutants sanitize lint type check bench verify-device pictures docs lock clean

help: ## this list
	@echo "make TARGET:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

doctor: ## what this machine has, what vNPU needs, how to get what is missing
	@if [ -x $(BIN)/vnpu ]; then $(BIN)/vnpu doctor; else $(PYTHON) coordinator/cli/doctor.py; fi

setup: ## .venv with everything in it; done again only where something changed
	@$(PYTHON) docker/requirements/venv.py

demo: setup ## three real vLLM engines take turns on a device that holds two
	@$(BIN)/vnpu demo

test: setup ## the test suite, real etcd and real engines included (at most 25 minutes on two cores)
	$(BOTH) -m "not system and not campaign" $(ARGS)

test-system: setup ## what needs more of the machine: etcd 3.4, Compose, two-rank engines, long seeds
	$(BOTH) -m "system and not campaign" $(ARGS)

campaign: setup ## hours: the protocol in large; property tests and simulations, ROUNDS=20 times with random seeds
	$(PYTEST) -q -m campaign --timeout=36000 $(ARGS)
	@for round in $$(seq 1 $(ROUNDS)); do \
	    seed=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); \
	    echo "round $$round of $(ROUNDS): --hypothesis-seed=$$seed SEEDS=$(SEEDS) FIRST_SEED=$$seed"; \
	    SEEDS=$(SEEDS) FIRST_SEED=$$seed $(PYTEST) -q tests/property tests/sim tests/store \
	        tests/native/conformance/test_random_life.py -m "not engine and not system and not campaign" \
	        --hypothesis-profile=campaign --hypothesis-seed=$$seed \
	        --timeout=7200 $(ARGS) || exit 1; \
	    SEQUENCES=$(SEEDS) FIRST_SEED=$$seed $(PYTEST) -q tests/integration/daemon/test_sequences.py \
	        --timeout=7200 $(ARGS) || exit 1; \
	done

sim: setup ## SEEDS=10000 histories of the whole system in virtual time, on all cores (ten minutes on two)
	$(BIN)/python -m tests.helpers.whole $(SEEDS) --first $(or $(FIRST_SEED),0)

mutants: setup ## every planted bug is built in and looked for; the table of who was found, and by what
	$(BIN)/python -m tests.mutants $(ARGS)

sanitize: setup ## the native module with AddressSanitizer and UndefinedBehaviorSanitizer, under its tests
	$(BIN)/python -m tests.sanitize $(ARGS)

lint: setup ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

type: setup ## types alone
	$(BIN)/mypy

check: lint test ## what a change must pass

bench: setup ## every benchmark (or ARGS="wake tax"), rendered to benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks $(ARGS)

verify-device: setup ## conformance, a restore and a canary on this machine's device: DRIVER=ascend or cuda
	@test -n "$(DRIVER)" || { echo "say which: make verify-device DRIVER=ascend (or cuda)"; exit 2; }
	$(BIN)/python -m native.verify $(DRIVER) --report .vnpu/verify-$(DRIVER).md $(ARGS)

pictures: setup ## docs/images, taken of three real engines; needs Chromium and the demo's models (`make demo`)
	$(BIN)/python -m tests.pictures $(ARGS)

docs: setup ## whether the pages in docs/ are true, as far as a test can tell
	$(PYTEST) -q tests/unit/test_docs.py tests/unit/test_config_docs.py

lock: ## writes docker/requirements/*.txt from what .venv holds now
	$(BIN)/python docker/requirements/lock.py

clean: ## what was built and measured; models, .venv and running nodes stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
