# Every target works in $(VENV), an environment that is created on first use and kept. It contains the
# built package and not a link to the sources, so the tests see what a user gets. Stamp files trigger a
# rebuild if TORCH, a build setting or a source changes.
#
#   TORCH    the requirement for torch:             make test TORCH=torch==2.14.1
#            It may contain any pip arguments:      make demo TORCH="torch --index-url URL"
#            The default is a fixed version, so that results from different machines are comparable. On
#            Linux pip may choose a CUDA build (5 GB). The CUDA part is then built if there is an nvcc.
#   VENV     the environment, e.g. one per torch:   make test VENV=.venv-next TORCH=torch
#   PYTHON   the Python that creates it:            make test PYTHON=python3.13
#   PYTEST_ARGS, DEMO_ARGS, EXAMPLES_ARGS, BENCH_ARGS, STEPS_ARGS, MUTATION_ARGS, BUDGET_ARGS,
#            GPU_ARGS: further arguments            make test PYTEST_ARGS="-k philox -x"
#   EXAMPLES, FIGURES   the examples to run, and the folder: make examples EXAMPLES=bayesian_mlp
#            single_cell needs scvi-tools, which needs Python 3.11 or newer.
#   SELECTION   the tests of `make test`. The default, $(PACKAGE_TESTS), excludes the native tests, the
#            tests of the tools, slow tests, and tests that require requirements/packages.txt.
#   WORKERS  processes that run tests, by default one per core: make test WORKERS=0 PYTEST_ARGS=--pdb
#   PAIRS    pairs of Python and torch to test:     make matrix PAIRS="python3.12:2.11.0 python3.13:2.14.1"
#   BUNDLE_TORCH, BUNDLE_PYTHON, BUNDLE_ARCH, BUNDLE_VENV   the machine that the wheels of `gpu-bundle` are
#            for, and the environment:               make gpu-bundle BUNDLE_ARCH=10.0
#   VAE_FUSED_BUILD, TORCH_CUDA_ARCH_LIST, MAX_JOBS, DEBUG, CXX: see setup.py
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
# The torch and the Python of NVIDIA's image, and the compute capability of an H100 or H200.
BUNDLE_TORCH  ?= torch==2.11.0
BUNDLE_PYTHON ?= 3.12
BUNDLE_ARCH   ?= 9.0
BUNDLE_VENV   ?= .venv-bundle

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
EXAMPLES ?= iwae_digits hierarchical_digits photographs_bf16 bayesian_mlp single_cell
FIGURES  ?= figures
WORKERS  ?= auto
# The folders with the longest files come first, because a worker runs whole files, and the others
# would wait for a long one at the end.
FOLDERS  := $(addprefix tests/,usage tools native layers package gpu functional)
PACKAGE_TESTS = $(filter-out %/native %/tools,$(FOLDERS)) -m "not slow and not packages"
SELECTION ?= $(PACKAGE_TESTS)
CXX_SOURCES = $(shell find csrc tests tools -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PACKAGE_SOURCES := $(sort setup.py pyproject.toml $(wildcard build_support/*.py LICENSE README.md) \
    $(shell find csrc vae_fused -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \
                             -o -name '*.py' -o -name py.typed))

# The name of a stamp contains a hash of the settings with which it was made. A new stamp replaces older
# ones.
key = $(shell printf '%s' '$(1)' | cksum | cut -d' ' -f1)
PYTHON_STAMP := $(VENV)/.python-$(call key,$(PYTHON))
TORCH_STAMP  := $(VENV)/.torch-$(call key,$(TORCH))
BUILD_STAMP  := $(VENV)/.build-$(call key,$(PACKAGE_SOURCES) $(VAE_FUSED_BUILD) \
    $(TORCH_CUDA_ARCH_LIST) $(FORCE_CUDA) $(DEBUG) $(CXX) $(CPPFLAGS) $(CUDA_HOME))

.PHONY: help environment environment-all build demo examples test test-all bench steps regressions \
    mutations budget gpu gpu-bundle gpu-wheels matrix lint format clean
.DEFAULT_GOAL := help

help:
	@echo 'make build    compile and install vae_fused in $(VENV)'
	@echo 'make demo     build, train a small VAE and draw digits.png'
	@echo 'make examples build, run the examples of docs/examples.md, write figures to $(FIGURES)'
	@echo '              EXAMPLES_ARGS=--quick takes less than two minutes for each'
	@echo 'make test     build and run the tests of the package, less than 6 minutes on two cores'
	@echo 'make test-all build and run all tests, also those of csrc, of tools and with packages (1 GB); 15 min'
	@echo 'make matrix   run `make test` for each pair of Python and torch in PAIRS, in build/matrix'
	@echo 'make bench    build, time the latent against other implementations, write a table, a JSON and a figure'
	@echo 'make steps    build, install released packages, time their training steps, write a table and a JSON'
	@echo 'make regressions   build, and compare the speed over eager PyTorch with floors'
	@echo 'make mutations     change each formula by 1 %, and list the changes that no test detects: 40 min'
	@echo 'make budget   record the cost of each kernel of a CUDA build; BUDGET_ARGS=--check compares'
	@echo 'make gpu      build, and check all promises on this GPU in 240 s; results as JSON'
	@echo 'make gpu-bundle    without a GPU, make wheels for such a check on a machine without a network'
	@echo 'make lint     run ruff, mypy and clang-format without changing files'
	@echo 'make format   rewrite the sources with ruff and clang-format'
	@echo 'make clean    remove builds and caches, and $(VENV)'
	@echo 'The head of the Makefile documents the variables, e.g. TORCH=$(TORCH)'

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

# Requirements are installed once per torch. None of them may change the version of torch.
$(VENV)/.%-requirements: requirements/%.txt $(TORCH_STAMP)
	$(PIP) -r $<
	@touch $@

# With `make -j`, pip must not replace libraries that the build uses.
$(VENV)/.examples-requirements: requirements/demo.txt | $(BUILD_STAMP)

# Packages in which vae_fused replaces the latent or the loss. `steps` measures these packages, and
# `test-all` compares vae_fused with them.
$(VENV)/.steps-requirements $(VENV)/.packages-requirements: $(VENV)/.%-requirements: \
    requirements/%.txt requirements/demo.txt requirements/examples.txt requirements/steps.txt \
    requirements/steps-without-dependencies.txt $(TORCH_STAMP)
	$(PIP) -r $<
	$(PIP) --no-deps -r requirements/steps-without-dependencies.txt
	@touch $@

build: $(BUILD_STAMP)

# Downloads everything that `make test` needs.
environment: $(VENV)/.test-requirements

# Downloads everything that `make test-all` needs.
environment-all: environment $(VENV)/.packages-requirements

demo: $(BUILD_STAMP) $(VENV)/.demo-requirements
	$(BIN)/python examples/train_digits.py --compare --out digits.png $(DEMO_ARGS)
	@echo 'The figure is $(CURDIR)/digits.png'

examples: $(addprefix example-,$(EXAMPLES))

# `make -j` runs several examples at once.
example-%: $(BUILD_STAMP) $(VENV)/.examples-requirements
	$(BIN)/python examples/$*.py --out $(FIGURES)/$*.png $(EXAMPLES_ARGS)

bench: $(BUILD_STAMP) $(VENV)/.bench-requirements
	$(BIN)/python -m benchmarks --plot $(BENCH_ARGS)

steps: $(BUILD_STAMP) $(VENV)/.steps-requirements
	$(BIN)/python -m benchmarks.steps $(STEPS_ARGS)

regressions: $(BUILD_STAMP) $(VENV)/.test-requirements
	$(BIN)/pytest tests/speed --benchmark-columns=median,iqr $(PYTEST_ARGS)

# The program builds a rewritten copy, so the environment needs only the requirements of the tests.
mutations: $(TORCH_STAMP) $(VENV)/.test-requirements $(VENV)/.packages-requirements
	PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH=tests $(BIN)/python -m mutations $(MUTATION_ARGS)

budget: $(BUILD_STAMP)
	$(BIN)/python -m tools.kernel_budget $(or $(BUDGET_ARGS),--update)

gpu: $(BUILD_STAMP) $(VENV)/.test-requirements
	$(BIN)/python -m tools.gpu_check $(GPU_ARGS)

gpu-bundle:
	$(MAKE) gpu-wheels VENV='$(BUNDLE_VENV)' TORCH='$(BUNDLE_TORCH)' VAE_FUSED_BUILD=cuda \
	    TORCH_CUDA_ARCH_LIST=$(BUNDLE_ARCH)

# Downloads the modules that the tests of a GPU check import, except mpmath, which torch brings in the
# version that its sympy requires. pip downloads for another Python only if nothing has to be built.
gpu-wheels: $(TORCH_STAMP)
	rm -rf build/gpu-bundle
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip --quiet wheel --no-build-isolation --no-deps \
	    --wheel-dir build/gpu-bundle .
	$(BIN)/python -m pip --quiet download --dest build/gpu-bundle --only-binary=:all: \
	    --implementation cp --python-version $(BUNDLE_PYTHON) --platform manylinux_2_17_x86_64 \
	    pytest pytest-xdist hypothesis expecttest
	@du -sh build/gpu-bundle
	@echo 'Copy the checkout with this folder to the machine with the GPU, and run there:'
	@echo '    PIP_CONSTRAINT= pip install --no-index --no-deps --ignore-installed build/gpu-bundle/*.whl'
	@echo "    export VAE_FUSED_COMMIT=$$(git describe --always --dirty --abbrev=12 --exclude '*')"
	@echo '    python -m tools.gpu_check; python -m tools.gpu_check again'

# `python -m pytest` would import the sources next to the tests, so this uses the pytest command. A
# worker runs whole files, because some tests of a file cannot run at the same time. All workers must
# collect the same tests in the same order. Some test parameters are sets, so the hash seed is fixed.
# Each worker has as many OpenMP threads as the machine has cores. Their waits are passive, because
# spinning took a third of the processor time.
PYTEST := PYTHONHASHSEED=0 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n $(WORKERS) --maxprocesses 8 \
    --dist loadfile --no-loadscope-reorder

test: $(BUILD_STAMP) $(VENV)/.test-requirements
	$(PYTEST) $(SELECTION) $(PYTEST_ARGS)

test-all: $(BUILD_STAMP) $(VENV)/.test-requirements $(VENV)/.packages-requirements
	$(PYTEST) $(FOLDERS) $(PYTEST_ARGS)

# Each pair has its own environment, which takes several GB if pip chooses a CUDA build of torch.
matrix:
	@failed=; for pair in $(PAIRS); do \
	    python=$${pair%:*}; torch=$${pair##*:}; \
	    VAE_FUSED_BUILD=$${VAE_FUSED_BUILD:-cpu} $(MAKE) test PYTHON=$$python TORCH=torch==$$torch \
	        VENV=build/matrix/$${python##*/}-torch$$torch || failed="$$failed $$pair"; \
	done; test -z "$$failed" || { echo "matrix: failed:$$failed"; exit 1; }

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
	find build_support csrc vae_fused tests examples benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +
