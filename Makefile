PYTHON ?= python3
BIN := .venv/bin

# Torch's threads otherwise spin while they wait for each other, which starves whatever shares the
# cores with them.
export OMP_WAIT_POLICY := passive

.DEFAULT_GOAL := help
.PHONY: help setup test lint format demo

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make .venv with exact versions of everything (PYTHON=python3.11 or newer)
	@PYTHON="$(PYTHON)" bash requirements/setup.sh

test: setup ## Run the tests (ARGS="-k name" for some)
	$(BIN)/python -m pytest -q --durations=15 $(ARGS)

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
