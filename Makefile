# Two commands are enough: `make demo` shows the whole loop, `make test` proves it. Both set up what they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BENCH  := .venv-bench
TREE   := rtrec_ray actors serving training tests

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint up down bench soak lock

help: ## Show the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: $(READY) ## Fetch everything into .venv, the jars of Kafka included; later runs need no network

# Compiled here once: every process of a system would compile TensorFlow, Ray and MLflow anew where Python may not write
# beside its sources (PYTHONDONTWRITEBYTECODE, as containers set it): 32 s instead of 10 to import the three.
$(READY): requirements.lock pyproject.toml rtrec_ray/embedded/kafka-jars.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q $(TREE)
	$(BIN)/python -m rtrec_ray.embedded.fetch
	touch $(READY)

demo: $(READY) ## Show in a drifting world what real time is worth; leaves out/demo/report.html
	$(BIN)/rtrec demo

test: $(READY) ## Run every test but the soak tests, against real servers that the suite starts
	$(BIN)/python -m pytest -m "not soak" -n 2 --dist loadscope --no-loadscope-reorder --durations=15

lint: $(READY) ## Check style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

up: $(READY) ## Start the system and keep it running until Ctrl-C
	$(BIN)/rtrec up

down: $(READY) ## Stop a running system
	$(BIN)/rtrec down

bench: $(READY) $(BENCH)/.ready ## Run the benchmarks; each prints one JSON line. The first run fetches Feast
	$(BIN)/python -m benchmarks

# Apart from the other, as Feast wants older versions of what is pinned there.
$(BENCH)/.ready: requirements-bench.lock $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(BENCH)
	$(BIN)/uv pip install --quiet --python $(BENCH)/bin/python --require-hashes -r requirements-bench.lock
	$(BIN)/uv pip install --quiet --python $(BENCH)/bin/python --no-deps --no-build-isolation -e .
	touch $(BENCH)/.ready

soak: $(READY) ## Run the long fault tests, and the property tests with a thousand examples each
	$(BIN)/python -m pytest -m soak
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -n 2 tests/property

lock: ## Pin the dependencies anew, with hashes, for Python 3.11 and 3.12
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --extra dev pyproject.toml -o requirements.lock
	cp requirements.lock requirements-bench.lock  # the same pins wherever Feast allows
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --extra bench pyproject.toml -o requirements-bench.lock
