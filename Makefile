# Names the common tasks; the work itself is done by scripts/ and by the kernelforge command.

python := .venv/bin/python
kernelforge := .venv/bin/kernelforge
TEST_PROCESSES ?= 2
VARIANTS ?= 20
TESTS13 := tests/families/test_conformance.py tests/families/test_short_rows.py $(wildcard tests/families/test_gemm_coop*.py) tests/families/test_wkv_chunk.py tests/models/test_matrix_prefill.py tests/models/test_chunked_prefill.py
# its software device compiles cooperative matrices for seconds each
VARIANTS13 ?= 1
models := $(wildcard runtime/demo/*.safetensors)

.DEFAULT_GOAL := help
.PHONY: help setup demo test conformance test13 check bench report gpu clean

help:       ## this list
	@sed -n 's/^\([a-z0-9]*\): *[a-z ]*## /\1\t/p' Makefile | expand -t 13

setup:      ## install all that is needed: system packages, two software devices, .venv
	@bash scripts/setup.sh

demo: setup ## tune, bundle, run a real model and report, on the default device
	@bash scripts/demo.sh

test: setup ## the whole test suite; PYTEST_ARGS="-k gemv" for a part of it
	@. scripts/env.sh && $(python) -m pytest -n $(TEST_PROCESSES) --dist loadgroup --durations=15 $(PYTEST_ARGS)

conformance: setup ## every kernel family with VARIANTS (20) random variants at each problem
	@. scripts/env.sh && KERNELFORGE_VARIANTS=$(VARIANTS) $(python) -m pytest -n $(TEST_PROCESSES) --dist worksteal \
	  tests/families/test_conformance.py $(PYTEST_ARGS)

test13: setup ## kernels on a newer Mesa and compiler, in .setup/debian13; skipped where it cannot be
	@KERNELFORGE_VARIANTS=$(VARIANTS13) bash scripts/debian13.sh python3 -m pytest -n $(TEST_PROCESSES) --dist loadgroup --durations=5 $(TESTS13) $(PYTEST_ARGS) || test $$? -eq 77

check: setup ## lint, format, types, import contracts
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	.venv/bin/lint-imports

bench: setup ## tokens per second of the models in runtime/demo
	@set -e; for model in $(models); do $(kernelforge) bench "$$model"; done

report: setup ## performance reports under reports/, and the index of them
	@$(kernelforge) report

gpu: setup  ## tune, verify and report on this machine's GPU
	@bash scripts/gpu.sh

clean:      ## remove what tools left behind; .venv and .setup stay
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find kernelforge runtime templates tests -name __pycache__ -type d -prune -exec rm -rf {} +
