# Setup, demo and tests. Needs python3 (3.12 or later) with venv; pip installs everything else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INPUT ?=
FRAMES ?= 6
# Number of tests that run at the same time: twice the cores of a small machine, since many tests wait for other programs.
WORKERS ?= 4
FAST := tests/archs tests/cache tests/nn tests/video tests/weights tests/system tests/namespace tests/test_options.py \
  tests/test_inference.py tests/test_filter.py tests/test_refusals.py tests/test_cli.py

.PHONY: setup demo test coverage check lint types types-windows sanitize test-gpu gpu-visit bench wheels clean

setup: $(VENV)/.done

# pip compiles what it installs one file after another; compileall uses all cores. Like pip, it passes over files in the
# grammar of another Python. What hardly any program imports, a third of all, is compiled when it is imported.
RARE = /(tests?|testing|rllib|serve|tune|llm|networkx|fontTools|docutils|setuptools|mypyc?|pip)/
INSTALL = $(BIN)/pip install --quiet --no-compile --constraint constraints.txt
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '$(RARE)' $(VENV)/lib >/dev/null 2>&1 || true

# A virtual environment with what a user needs, so that `make demo` installs nothing else; `make setup` adds to it.
$(VENV)/.demo: pyproject.toml constraints.txt hatch_build.py $(wildcard vsfdatrd/_native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { \
	  echo "$(PYTHON) is older than 3.12, which VapourSynth needs; choose another: make $(MAKECMDGOALS) PYTHON=python3.13" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[encode]'
	@$(COMPILE)
	$(BIN)/vapoursynth config
	touch $@

# pip uses one core, so two of them work side by side: PyTorch, and the tools that do not need it. Only packages that
# .demo has installed belong to both (a test compares them). The last pip adds what needs both, or what one of them missed.
$(VENV)/.done: $(VENV)/.demo
	$(BIN)/pip install --quiet --no-compile --upgrade pip
	@echo "installing PyTorch and the development tools"
	@$(INSTALL) 'vsfdatrd[torch]' & $(INSTALL) 'vsfdatrd[tools]'; wait
	$(INSTALL) 'vsfdatrd[dev]'
	@$(COMPILE)
	$(BIN)/vsstubs --quiet
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m benchmarks.demo --frames $(FRAMES) $(if $(INPUT),--input '$(INPUT)')

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory --jobs=2 types types-windows

types: setup
	$(BIN)/mypy

types-windows: setup
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 vsfdatrd

# ruff, mypy and the fast tests: a few minutes, to be run before every commit.
check: lint
	$(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist worksteal -m "not slow" $(FAST)

# ISA=avx2 runs the tests as on a processor that has AVX2 and nothing newer (docs/cpu.md lists the other values).
test: lint
	$(if $(ISA),FDATRD_MAX_ISA=$(ISA)) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# The same, and a list of the lines of the package that no test runs.
coverage: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --cov --cov-report=term:skip-covered

# The C code's tests with AddressSanitizer and UndefinedBehaviorSanitizer; some minutes.
sanitize: setup
	$(BIN)/python -m tests.sanitizers

# Tests that need an NVIDIA GPU: engines against the reference on real frames, streams, CUDA graphs, memory. Nothing is
# downloaded: without a virtual environment, PYTHON runs them, and tests whose packages are missing are skipped.
test-gpu: GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
test-gpu:
	@$(GPU_PYTHON) -c 'import cuda.bindings, numpy, onnx, psutil, pytest, pytest_timeout, safetensors, torch' || { \
	  echo "$(GPU_PYTHON) lacks packages that the tests need: make setup, or choose a Python that has them: make test-gpu PYTHON=python3" >&2; exit 1; }
	$(GPU_PYTHON) -m pytest tests/gpu -v -W default  # whose Python may have newer libraries, which announce changes

# Measurements and training on a rented machine with an NVIDIA GPU: VISIT="--rehearse" (the default), "--pack", "--part
# facts", "--part train", "--restore"; docs/gpu_internals.md explains the order.
VISIT ?= --rehearse
gpu-visit: GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu-visit:
	$(GPU_PYTHON) -m benchmarks.gpu_visit $(VISIT)

# Frames per second on this machine, compared with the other plugins that are installed; two minutes.
bench: setup
	$(BIN)/python -m benchmarks --quick

# The source archive and a wheel for each platform, cross-compiled and checked; see docs/release.md.
# Options for the processor of this machine must not get into wheels for others.
wheels: export CFLAGS =
wheels: setup
	rm -rf dist
	$(BIN)/python -m build --no-isolation --sdist --outdir dist
	for target in $$($(BIN)/python -c 'import hatch_build; print(*hatch_build.TARGETS)'); do \
	  VSFDATRD_TARGET=$$target $(BIN)/python -m build --no-isolation --wheel --outdir dist || exit 1; done
	$(BIN)/twine check --strict dist/*
	DIST=dist $(BIN)/python -m pytest tests/test_wheels.py

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
