# Each target first makes .venv with all it needs; a second call starts at once.
# ARGS go to the command behind a target: make test ARGS="tests/core -k geometry", make demo ARGS="--steps 100"
PYTHON ?= python3
ARGS ?=

.PHONY: help setup demo test check bench drill mutants clean
.DEFAULT_GOAL := help

help: ## these lines
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | expand -t 8

setup: .venv/.ready ## .venv with satunet and everything it, its tests and its checks need

.venv/.ready: setup.py pyproject.toml scripts/setup
	@PYTHON="$(PYTHON)" bash scripts/setup

# What the demo needs is installed in two thirds of the time that everything takes.
.venv/.runs: setup.py pyproject.toml scripts/setup
	@PYTHON="$(PYTHON)" EXTRAS=demo bash scripts/setup

demo: .venv/.runs ## the main job: from raw scans to a benchmark report, in demo_output/
	.venv/bin/python -m satunet demo $(ARGS)

test: .venv/.ready ## all tests
	bash scripts/test $(ARGS)

check: .venv/.ready ## lint, format, types, layers
	bash scripts/check

bench: .venv/.ready ## speed and memory beside peers
	bash scripts/bench $(ARGS)

drill: .venv/.ready ## many faults made on purpose: damaged files, kills, disks that fail
	bash scripts/drill $(ARGS)

mutants: .venv/.ready ## small changes of the code that tests have to notice (extra: pip install -e .[mutants])
	.venv/bin/python -m tests.drills.mutants $(ARGS)

clean: ## remove all that the other targets made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis demo_output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
