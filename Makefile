# make demo | test | lint | bench | gpu-test | gpu-bench
# Each makes .venv in the checkout when it is missing or older than pyproject.toml. To use an interpreter that has
# the packages already:  make gpu-test PYTHON=python3 VENV=
PYTHON ?= python3
VENV ?= .venv
CUDA ?= 12
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

ifneq ($(strip $(VENV)),)
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed
TEST_READY := $(VENV)/.installed-test
GPU_READY := $(VENV)/.installed-cuda$(CUDA)
else
RUN := $(PYTHON)
endif

.PHONY: demo test lint bench gpu-test gpu-bench clean

demo: $(READY)
	$(RUN) -m benchmarks.jobs.demo --o demo_output

# Two threads each: enough to test that results do not depend on their number, few enough for WORKERS at once.
test: $(TEST_READY)
	NUMBA_NUM_THREADS=2 OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS)

# mypy reads the package as a user installs it: a wheel, unpacked beside, seen from outside the checkout's root.
lint: $(TEST_READY)
	$(RUN) -m ruff check .
	rm -rf build
	$(RUN) -m pip install --quiet --no-deps --target build/installed .
	cd build/installed && $(abspath $(dir $(RUN)))/$(notdir $(RUN)) -m mypy --config-file $(CURDIR)/pyproject.toml -p spa

# Tables go to benchmarks/results, each with machine, versions, commit and date.
bench: $(READY)
	$(RUN) -m benchmarks.kernels --device cpu --output benchmarks/results/kernels_cpu.txt
	$(RUN) -m benchmarks.report benchmarks/results/kernels_cpu.txt
	$(RUN) -m benchmarks.jobs --save

gpu-test: $(GPU_READY)
	SPA_REQUIRE_GPU=1 $(RUN) -m pytest

gpu-bench: $(GPU_READY)
	$(RUN) -m benchmarks.kernels --device gpu

clean:
	rm -rf .venv build dist demo_output *.egg-info

ifneq ($(strip $(VENV)),)
$(RUN):
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "spa needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(READY): pyproject.toml | $(RUN)
	$(RUN) -m pip install --quiet --editable .
	touch $@

$(TEST_READY): pyproject.toml | $(RUN)
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $(READY) $@

$(GPU_READY): pyproject.toml | $(RUN)
	$(RUN) -m pip install --quiet --editable '.[test,cuda$(CUDA)]'
	touch $(READY) $(TEST_READY) $@
endif
