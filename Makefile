# `make` alone lists the targets.
VENV_PYTHON := .venv/bin/python
SUITES := unit comfyui service kafka browser package
SET_UP := ./setup.sh --when-needed

.PHONY: help setup demo test check bench bench-full clean $(addprefix test-,$(SUITES)) test-soak

help: ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '  make %-14s %s\n' $(foreach suite,$(SUITES),test-$(suite) "the suite tests/$(suite)")

setup: ## find or fetch ComfyUI, make .venv, lay the VAE files (repeatable)
	./setup.sh --tests

demo: ## encode a picture in ComfyUI, decode it back: make demo [IMAGE=photo.jpg] [VAE=name]
	@$(SET_UP)
	@$(VENV_PYTHON) tools/demo.py $${IMAGE:+--image "$$IMAGE"} $${VAE:+--vae "$$VAE"}

test: ## every suite, with a table at the end
	@$(SET_UP) --no-models --tests
	@$(VENV_PYTHON) tools/run_suites.py

check: ## ruff (lint and format), mypy --strict
	@$(SET_UP) --no-models --tests
	@$(VENV_PYTHON) tools/run_suites.py check

$(addprefix test-,$(SUITES)): test-%:
	@$(SET_UP) --no-models --tests
	@$(VENV_PYTHON) tools/run_suites.py $*

test-soak: ## the long runs that `make test` leaves out
	@$(SET_UP) --no-models --tests
	@$(VENV_PYTHON) -m pytest -m soak --timeout 3600

bench: ## the ratios of benchmarks/ into benchmarks/results.md: encoders, nodes, files, start-up; up to 45 minutes
	@$(SET_UP) --no-models --tests
	@$(VENV_PYTHON) benchmarks/run.py --write

bench-full: ## the rest of them too: every door, the service, Kafka
	@$(SET_UP) --no-models --tests
	@$(VENV_PYTHON) benchmarks/run.py --full --write

clean: ## remove what demo, tests and tools left (.venv and ComfyUI stay)
	rm -rf .demo .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
