# Two commands for a newcomer: `make demo` and `make test`. Both make their own virtual environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cksum < requirements.lock | cut -d' ' -f1)

.PHONY: help demo test test-fast benchmark benchmark-baseline lint format lock clean
help:
	@echo "make demo       train SiT, REPA and ERW on embedded digits at equal FLOPs; pictures in runs/demo"
	@echo "make test       all tests, fast ones first"
	@echo "make test-fast  the fast ones alone"
	@echo "make benchmark  time what a CPU trains with, against the stored baseline"
	@echo "make lint       ruff, as in pre-commit"
	@echo "make lock       write requirements.lock anew from requirements.in"
	@echo "make clean      remove the environment and caches; runs/ stays"

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "erw: $(PYTHON) is missing or older than Python 3.11: install it, or name one with PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "erw: $(PYTHON) has no venv: install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@echo "installing pinned packages into $(VENV) (about three minutes and 6 GB, once)"
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@DS_BUILD_OPS=0 $(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --disable-pip-version-check -e .
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m erw.bench.demo --out runs/demo

# Tests run several processes at once, whose waiting threads must not spin.
test test-fast: export OMP_WAIT_POLICY ?= PASSIVE

# A file stays with one worker: what its tests share is made once. Timings are skipped, for which their plugin is not needed; it
# would warn of the other worker.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile -p no:benchmark

test: $(STAMP)
	@$(PYTEST) -m "not slow"
	@$(PYTEST) -m slow

test-fast: $(STAMP)
	@$(PYTEST) -m "not slow"

# On the CPU, in one process, on a machine that does nothing else.
BENCHMARK := CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -q tests/kernels/test_speed.py --benchmark-only
BASELINE := bench/results/benchmark-cpu.json

benchmark: $(STAMP)
	@$(BENCHMARK)

# The old one is no longer compared with, and stays in git.
benchmark-baseline: $(STAMP)
	@rm -f $(BASELINE)
	@$(BENCHMARK) --benchmark-json=$(BASELINE)

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(STAMP)
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock:
	@rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	@DS_BUILD_OPS=0 .venv-lock/bin/pip install --quiet -r requirements.in
	@{ echo "# Written by 'make lock' from requirements.in: Linux x86-64, Python 3.11 and up."; \
		.venv-lock/bin/pip freeze; } > requirements.lock
	@rm -rf .venv-lock

clean:
	rm -rf $(VENV) .venv-lock build *.egg-info .pytest_cache .ruff_cache .mypy_cache
