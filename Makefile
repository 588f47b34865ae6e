# Every command does its own set-up, and says what it installs. PYTHON chooses the
# interpreter: make test PYTHON=python3.13

PYTHON ?= python3
export PYTHON MESON_ARGS

help:
	@echo 'make demo      index the standard library under spanprof'
	@echo 'make test      the whole test suite (PYTEST_ARGS="tests/python -k label")'
	@echo 'make lint      formats, linters, types'
	@echo 'make format    format everything'
	@echo 'make warnings  compile with gcc and clang; warnings are errors'
	@echo 'make wheel     a wheel in dist/ that carries its libraries'
	@echo 'make bench     the benchmarks (BENCH="span_cost startup")'
	@echo 'make docs      the site, in site/'
	@echo 'make clean     remove all that these have made'
	@echo 'With another interpreter: make test PYTHON=python3.13'

demo:
	@tools/demo.sh

test:
	@tools/test.sh $(PYTEST_ARGS)

lint:
	@tools/lint.sh

format:
	@tools/lint.sh --format

warnings:
	@tools/warnings.sh

wheel:
	@tools/wheel.sh

bench:
	@tools/with_spanprof.sh -- python "$(CURDIR)/benchmarks/run_all.py" $(BENCH)

docs:
	@tools/docs.sh

clean:
	rm -rf .venv-* build build-* dist profiles site .mypy_cache .pytest_cache .ruff_cache

.PHONY: help demo test lint format warnings wheel bench docs clean
