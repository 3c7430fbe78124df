# Each target sets up what it needs in .venv by itself.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench setup clean
.DEFAULT_GOAL := test

setup: .venv/.ready

.venv/.ready: setup.py scripts/setup
	PYTHON="$(PYTHON)" bash scripts/setup

demo: .venv/.ready ## the main job: from raw scans to a benchmark report
	$(BIN)/python -m satunet demo

test: .venv/.ready ## all tests
	bash scripts/test

check: .venv/.ready ## lint, types, layers
	bash scripts/check

bench: .venv/.ready ## speed and memory against peers
	bash scripts/bench

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache demo_output
