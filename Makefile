PYTHON ?= python3
BIN := .venv/bin

# Torch's threads otherwise spin while they wait for each other, which starves whatever shares the
# cores with them.
export OMP_WAIT_POLICY := passive

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-engine test-matrix test-gpu test-all fuzz abuse lint format demo

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make .venv with exact versions of everything (PYTHON=python3.11 or newer)
	@PYTHON="$(PYTHON)" bash requirements/setup.sh

# Two processes side by side, each with whole files (tests/conftest.py).
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -q --durations=15 -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: setup ## Run the quick tests: unit, integration, one engine start (ARGS="-k name" for some)
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: setup ## Run the tests that start processes or measure memory
	$(PYTEST) -m "slow and not engine" $(ARGS)

test-engine: setup ## Run the tests of the real vLLM engine
	$(PYTEST) -m engine $(ARGS)

# Not a part of test-all: another 700 MB for each release, and the engine's tests once more.
test-matrix: setup ## Run the engine's tests with every vLLM release that is served, and print a table
	$(BIN)/python requirements/test_matrix.py $(ARGS)

# Not those of `make setup`, whose vLLM is built for CPUs: an environment with vLLM for GPUs. One
# process, because engines that start side by side on a GPU fail.
GPU_PYTHON ?= python
test-gpu: ## Run the tests that need an NVIDIA GPU (GPU_PYTHON=that environment's python)
	$(GPU_PYTHON) -m pytest -q --durations=15 tests/gpu tests/unit/vllm_mha2mla/kernels/cuda $(ARGS)

test-all: setup ## Run every test
	$(PYTEST) $(ARGS)

fuzz: setup ## Read 10,000 damaged and hostile checkpoints (ARGS="--count 1000 --seed 3")
	$(BIN)/python -m tests.fuzz --jobs $(JOBS) $(ARGS)

lint: setup ## Check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup ## Mend formatting and what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: export HF_HUB_OFFLINE := 1
demo: export HF_HUB_DISABLE_PROGRESS_BARS := 1
demo: setup ## Convert a small model and compare it with its original in vLLM (ARGS=--fresh: anew)
	@$(BIN)/python examples/demo.py $(ARGS)

# Not part of `.ci/run`: it takes its minutes, and as long again to judge what came.
abuse: setup ## Abuse a served checkpoint for 30 minutes (ARGS="FOLDER --minutes 2"; default: the demo's)
	@$(BIN)/python examples/abuse_check.py $(ARGS)
