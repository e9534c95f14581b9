# Two commands for a newcomer: `make demo` and `make test`. Both make their own virtual environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cksum < requirements.lock | cut -d' ' -f1)

FLOOR := .venv-floor
FLOOR_STAMP := $(FLOOR)/.installed-$(shell cksum < requirements-floor.txt | cut -d' ' -f1)

.PHONY: help demo test test-fast test-floor benchmark benchmark-baseline lint format lock clean
help:
	@echo "make demo       train SiT, REPA and ERW on embedded digits at equal FLOPs; pictures in runs/demo"
	@echo "make test       all tests, fast ones first"
	@echo "make test-fast  the fast ones alone"
	@echo "make test-floor kernels under the oldest torch and triton: contract and machine code"
	@echo "make benchmark  time what a CPU trains with, against the stored baseline"
	@echo "make lint       ruff, as in pre-commit"
	@echo "make lock       write requirements.lock anew from requirements.in"
	@echo "make clean      remove the environment and caches; runs/ stays"

# The one Python that is there and can make environments, or an error that says what is missing.
define check_python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "erw: $(PYTHON) is missing or older than Python 3.11: install it, or name one with PYTHON=..." >&2; exit 2; }
@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	{ echo "erw: $(PYTHON) has no venv: install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
endef

# $(1): folder, $(2): file of pinned packages. erw itself goes in too.
define install
$(check_python)
@echo "installing pinned packages into $(1) (about three minutes and 6 GB, once)"
@rm -rf $(1) && $(PYTHON) -m venv $(1)
@DS_BUILD_OPS=0 $(1)/bin/pip install --quiet --disable-pip-version-check -r $(2)
@$(1)/bin/pip install --quiet --no-deps --no-build-isolation --disable-pip-version-check -e .
@touch $@
endef

$(STAMP): requirements.lock
	$(call install,$(VENV),requirements.lock)

$(FLOOR_STAMP): requirements-floor.txt
	$(call install,$(FLOOR),requirements-floor.txt)

demo: $(STAMP)
	@$(BIN)/python -m erw.bench.demo --out runs/demo

# Tests run several processes at once, whose waiting threads must not spin.
test test-fast test-floor: export OMP_WAIT_POLICY ?= PASSIVE

# A file stays with one worker: what its tests share is made once. Timings are skipped, for which their plugin is not needed; it
# would warn of the other worker.
PYTEST := python -m pytest -q -n 2 --dist loadfile -p no:benchmark

test: $(STAMP)
	@$(BIN)/$(PYTEST) -m "not slow"
	@$(BIN)/$(PYTEST) -m slow

test-fast: $(STAMP)
	@$(BIN)/$(PYTEST) -m "not slow"

test-floor: $(FLOOR_STAMP)
	@$(FLOOR)/bin/$(PYTEST) tests/kernels --ignore tests/kernels/test_mutants.py

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
	rm -rf $(VENV) $(FLOOR) .venv-lock build *.egg-info .pytest_cache .ruff_cache .mypy_cache
