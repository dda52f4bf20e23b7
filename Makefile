# Everything below happens in $(VENV), which is made on first use and kept. What is installed there
# is the built package, not a link to the sources: the tests see what a user gets. Stamp files
# rebuild what changed: another TORCH, another build setting, an edited source.
#
#   TORCH    what to give pip for torch:            make test TORCH=torch==2.14.1
#            any pip arguments do:                  make demo TORCH="torch --index-url URL"
#            The default is a fixed version, so that results compare between machines. On Linux pip
#            may pick a build with CUDA (5 GB); with nvcc at hand the CUDA part is then built, too.
#   VENV     the environment, e.g. one per torch:   make test VENV=.venv-next TORCH=torch
#   PYTHON   what makes the environment:            make test PYTHON=python3.13
#   PYTEST_ARGS, DEMO_ARGS, EXAMPLES_ARGS, BENCH_ARGS, STEPS_ARGS, MUTATION_ARGS, BUDGET_ARGS,
#            GPU_ARGS                               make test PYTEST_ARGS="-k philox -x"
#   EXAMPLES, FIGURES   which examples run, and the folder: make examples EXAMPLES=bayesian_mlp
#            single_cell needs scvi-tools, and so Python 3.11 or newer.
#   SELECTION   what `make test` runs. The default leaves out the tests of csrc alone and of the tools,
#            and all that are slow or need packages of requirements/packages.txt.
#   WORKERS  processes that run tests, one for each core: make test WORKERS=0 PYTEST_ARGS=--pdb
#   BUNDLE_TORCH, BUNDLE_ARCH, BUNDLE_VENV   what the bundle is compiled for: make gpu-bundle BUNDLE_ARCH=10.0
#   VAE_FUSED_BUILD, TORCH_CUDA_ARCH_LIST, MAX_JOBS, DEBUG, CXX: see setup.py
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
# The torch of NVIDIA's image, and the compute capability of an H100 or H200.
BUNDLE_TORCH ?= torch==2.11.0
BUNDLE_ARCH  ?= 9.0
BUNDLE_VENV  ?= .venv-bundle

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
EXAMPLES ?= iwae_digits hierarchical_digits photographs_bf16 bayesian_mlp single_cell
FIGURES  ?= figures
WORKERS  ?= auto
SELECTION ?= --ignore=tests/native --ignore=tests/tools -m "not slow and not packages"
CXX_SOURCES = $(shell find csrc tests tools -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PACKAGE_SOURCES := $(sort setup.py tools/toolchain.py pyproject.toml $(wildcard LICENSE README.md) \
    $(shell find csrc vae_fused -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \
                             -o -name '*.py' -o -name py.typed))

# A stamp's name carries what it was made with; making one removes those it replaces.
key = $(shell printf '%s' '$(1)' | cksum | cut -d' ' -f1)
PYTHON_STAMP := $(VENV)/.python-$(call key,$(PYTHON))
TORCH_STAMP  := $(VENV)/.torch-$(call key,$(TORCH))
BUILD_STAMP  := $(VENV)/.build-$(call key,$(PACKAGE_SOURCES) $(VAE_FUSED_BUILD) \
    $(TORCH_CUDA_ARCH_LIST) $(FORCE_CUDA) $(DEBUG) $(CXX) $(CUDA_HOME))

.PHONY: help build demo examples test test-all bench steps regressions mutations budget gpu gpu-bundle lint \
    format clean
.DEFAULT_GOAL := help

help:
	@echo 'make build    compile and install vae_fused in $(VENV)'
	@echo 'make demo     build, train a small VAE and draw digits.png'
	@echo 'make examples build, run the examples of docs/examples.md; figures in $(FIGURES)'
	@echo '              EXAMPLES_ARGS=--quick takes below two minutes for each'
	@echo 'make test     build and run the tests of the package, below 6 minutes on two cores'
	@echo 'make test-all build and run all tests, those with other packages (1 GB), of csrc, of tools: 30 min'
	@echo 'make bench    build, time the latent against what else computes it; table, JSON, figures'
	@echo 'make steps    build, install the packages, and time whole training steps of theirs; table, JSON'
	@echo 'make regressions   build, and hold the ratios to what eager takes to their floors'
	@echo 'make mutations     make each formula wrong by 1 %, and list what no test notices: 40 min'
	@echo 'make budget   of a CUDA build, record what each kernel costs; BUDGET_ARGS=--check compares'
	@echo 'make gpu      build, and hold it to its promises on this GPU in 240 s; results as JSON'
	@echo 'make gpu-bundle    without a GPU: pack what such a run needs on a machine without a network'
	@echo 'make lint     ruff, mypy and clang-format, changing nothing'
	@echo 'make format   let ruff and clang-format rewrite the sources'
	@echo 'make clean    remove builds and caches, and $(VENV)'
	@echo 'The head of the Makefile tells the variables, e.g. TORCH=$(TORCH)'

$(PYTHON_STAMP):
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(TORCH_STAMP): $(PYTHON_STAMP) requirements/build.txt
	$(PIP) $(TORCH)
	$(PIP) -r requirements/build.txt
	@rm -f $(VENV)/.torch-* $(VENV)/.build-*
	@touch $@

$(BUILD_STAMP): $(TORCH_STAMP) $(PACKAGE_SOURCES)
	@rm -f $(VENV)/.build-*
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation --no-deps --force-reinstall .
	@$(BIN)/python -I -W ignore -c 'from vae_fused import _ext; b = _ext.build_info; \
	    print("vae_fused: built", b["mode"], "because:", b["why"]); \
	    exit(_ext.reason if b["mode"] != "none" and not _ext.available else 0)'
	@touch $@

# Requirements are installed once per torch: nothing in them may move it.
$(VENV)/.%-requirements: requirements/%.txt $(TORCH_STAMP)
	$(PIP) -r $<
	@touch $@

$(VENV)/.examples-requirements: requirements/demo.txt

# Packages with the latent that this one replaces: measured by `steps`, compared by `test-all`.
$(VENV)/.steps-requirements $(VENV)/.packages-requirements: $(VENV)/.%-requirements: \
    requirements/%.txt requirements/demo.txt requirements/examples.txt requirements/steps.txt \
    requirements/steps-without-dependencies.txt $(TORCH_STAMP)
	$(PIP) -r $<
	$(PIP) --no-deps -r requirements/steps-without-dependencies.txt
	@touch $@

build: $(BUILD_STAMP)

demo: $(BUILD_STAMP) $(VENV)/.demo-requirements
	$(BIN)/python examples/train_digits.py --compare --out digits.png $(DEMO_ARGS)
	@echo 'The figure is $(CURDIR)/digits.png'

# `exit` ends the loop with the status of the example that failed.
examples: $(BUILD_STAMP) $(VENV)/.examples-requirements
	@for name in $(EXAMPLES); do \
	    echo "$(BIN)/python examples/$$name.py --out $(FIGURES)/$$name.png $(EXAMPLES_ARGS)"; \
	    $(BIN)/python examples/$$name.py --out $(FIGURES)/$$name.png $(EXAMPLES_ARGS) || exit; \
	done

bench: $(BUILD_STAMP) $(VENV)/.bench-requirements
	$(BIN)/python -m benchmarks --plot $(BENCH_ARGS)

steps: $(BUILD_STAMP) $(VENV)/.steps-requirements
	$(BIN)/python -m benchmarks.steps $(STEPS_ARGS)

regressions: $(BUILD_STAMP) $(VENV)/.test-requirements
	$(BIN)/pytest benchmarks/test_regressions.py --benchmark-columns=median,iqr $(PYTEST_ARGS)

# The script builds a rewritten copy; the environment only has to have what the tests need.
mutations: $(TORCH_STAMP) $(VENV)/.test-requirements $(VENV)/.packages-requirements
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/mutations.py $(MUTATION_ARGS)

budget: $(BUILD_STAMP)
	$(BIN)/python benchmarks/budget.py $(or $(BUDGET_ARGS),--update)

gpu: $(BUILD_STAMP) $(VENV)/.test-requirements
	$(BIN)/python tools/gpu.py $(GPU_ARGS)

gpu-bundle:
	$(MAKE) build VENV='$(BUNDLE_VENV)' TORCH='$(BUNDLE_TORCH)' VAE_FUSED_BUILD=cuda \
	    TORCH_CUDA_ARCH_LIST=$(BUNDLE_ARCH)
	$(BUNDLE_VENV)/bin/python tools/gpu.py bundle --arch sm_$(subst .,,$(BUNDLE_ARCH)) $(GPU_ARGS)

# The pytest command, not `python -m pytest`: that would import the sources beside the tests. A worker
# runs whole files, as some tests of a file cannot run at the same time. All workers must collect the
# same tests in the same order, and some parameters of tests are sets.
PYTEST := PYTHONHASHSEED=0 $(BIN)/pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile

test: $(BUILD_STAMP) $(VENV)/.test-requirements
	$(PYTEST) $(SELECTION) $(PYTEST_ARGS)

test-all: $(BUILD_STAMP) $(VENV)/.test-requirements $(VENV)/.packages-requirements
	$(PYTEST) $(PYTEST_ARGS)

lint: $(VENV)/.lint-requirements
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/.lint-requirements
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:
	rm -rf build dist figures *.egg-info $(VENV) .venv-none .venv-cuda .venv-bundle
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f vae_fused/*.so vae_fused/_build_info.json digits.png
	find csrc vae_fused tests examples benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +
