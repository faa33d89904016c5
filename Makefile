# `make demo` and `make test` set everything up by themselves, in either order, from a clean clone.

PYTHON ?= python3
BIN := .venv/bin
# Numba's on-disk cache does not notice edits in callees of other files: one cache per state of the sources.
export NUMBA_CACHE_DIR := $(CURDIR)/.numba_cache/$(shell cat $$(find mmgym baselines agents -name '*.py' | sort) | sha256sum | cut -c1-16)

# One BLAS thread a process: the tests run two processes on small matrices.
export OPENBLAS_NUM_THREADS := 1

# The extra `replay`, beside the lock: it asks for numpy < 2.3, but runs with the one there (tests/test_replay.py).
REPLAY := hftbacktest==2.4.4

# `make long SHARE=3/10` runs the fourth of ten parts of the long tests.
# Two processes: one of them has all tests of a market, so that each kernel is compiled once (tests/conftest.py).
PARALLEL := -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: demo test long slow check throughput clean

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps $(REPLAY)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: .venv/installed
	$(BIN)/mmgym demo

test: .venv/installed
	$(BIN)/python -m pytest -m "not long and not slow" $(PARALLEL)

long: .venv/installed
	$(BIN)/python -m pytest -m "long and not slow" $(PARALLEL) $(if $(SHARE),--share $(SHARE))

slow: .venv/installed
	$(BIN)/python -m pytest -m slow

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

throughput: .venv/installed
	$(BIN)/mmgym throughput

clean:
	rm -rf .venv .numba_cache build *.egg-info
