# make demo | test | test-operators | test-faults | test-versions | mutants | lint | bench | bench-gpu | results | results-operators
# make results-scale | docs | clean
# Another interpreter: make test PYTHON=python3.13 VENV=.venv313

, := ,

ifndef PYTHON
# A name on the PATH may be a launcher for a version that is not there, so each is tried by running it.
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)
endif
ifeq ($(strip $(PYTHON)),)
$(error No Python >= 3.11 found: install one, or name it with make PYTHON=/path/to/python)
endif

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
UV := $(BIN)/uv
# uv takes seconds where pip takes minutes, but it does not read pip's settings: where it does not get through, pip does it.
install = $(UV) pip install --quiet --python $(BIN)/python $(1) || $(PIP) install $(1)
PYTEST_ARGS ?=
# For example: make mutants MUTANTS_ARGS="holm auc"
MUTANTS_ARGS ?=
DATA ?= ../shared/data/human_choice
# make demo BACKBONE=tiny-internvl, likewise make results
BACKBONE ?= tiny-qwen3-vl
SUFFIX := $(if $(filter-out tiny-qwen3-vl,$(BACKBONE)),-$(notdir $(BACKBONE)))

# Linux: keep freed memory and use huge pages. XLA on CPU takes and returns its buffers at every step, and with a small
# model a good part of the time goes into page faults otherwise. Other systems ignore it.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864

# Every process imports thousands of modules, and takes twice as long for it where it may not keep them compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-operators test-faults test-versions test-lowest test-newest mutants lint bench bench-gpu docs results results-operators results-scale clean
.DELETE_ON_ERROR:

$(UV):
	$(PYTHON) -m venv $(VENV)
	$(PIP) install uv

# Stamp files: installed again only when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml | $(UV)
	$(call install,-e .)
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(UV)
	$(call install,-e ".[test$(,)docs]")
# By pip, whose settings may say where there is a build of torch for the CPU.
	$(PIP) install -e ".[torch]"
# The reference for LRP. What it asks for would bring torchvision, which breaks the pinned torch; what is tested needs none.
	$(PIP) install --no-deps lxt==2.1
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/fixate train configs/demo.yaml --backbone.path $(BACKBONE) --run runs/demo$(SUFFIX)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# With --quiet mkdocs would count no warnings, and a broken link would pass.
docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: $(VENV)/.installed-test
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint docs
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Every operator on both architectures, side by side and one by one, on one device and on eight simulated ones.
test-operators: $(VENV)/.installed-test
	LOOK_CASES=all JAX_PLATFORMS=cpu $(BIN)/python -m pytest --numprocesses 2 -rP $(PYTEST_ARGS) tests/probing/test_look.py -k side_by_side

# Kills a short run at 20 random points and compares what it ends with; runs it on a disk that is too small.
test-faults: $(VENV)/.installed-test
	FAULTS_POINTS=20 JAX_PLATFORMS=cpu $(BIN)/python -m pytest -s $(PYTEST_ARGS) tests/faults

# The lowest and the newest releases of all dependencies. Other interpreters, as a path or a version that uv may download:
# make test-versions LOWEST=/path/to/python3.11 NEWEST=3.14
LOWEST ?= 3.11
NEWEST ?= $(shell for p in python3.15 python3.14 python3.13 python3.12 \
  $$(ls -d "$$(pyenv root 2>/dev/null)"/versions/3.*/bin/python 2>/dev/null | sort -rV); do \
  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then echo $$p; break; fi; done)
# What meets other packages first: settings, readers, both tiny backbones, look, training, checkpoints, figures, environments.
VERSIONS_TESTS ?= tests/test_packaging.py::test_every_module_is_imported tests/tuning/test_loop.py tests/tuning/test_probe.py \
  tests/test_shipped.py::test_it_is_small_and_says_how_it_was_made tests/test_shipped.py::test_its_vision_tower_does_not_attend \
  tests/test_settings.py tests/test_metrics.py tests/test_cli.py tests/test_checkpoint.py tests/backbones/test_processing.py tests/backbones/test_internvl_pages.py \
  tests/data/test_store.py tests/data/test_human_choice.py tests/data/own/test_reader.py tests/data/recgaze/test_reader.py tests/data/adserp/test_reader.py \
  tests/data/synthetic/test_carousel.py tests/emulation/test_gym.py tests/report/test_figures.py
VERSIONS_SHOWN := jax|jaxlib|flax|optax|orbax-checkpoint|grain|transformers|pydantic|numpy|pandas|jaxtyping|beartype|gymnasium|pytest

test-versions: test-lowest test-newest

# $(1): environment, $(2): interpreter, $(3): options of the resolver. Made anew each time, which takes uv seconds.
define test-with
$(if $(strip $(2)),,$(error No Python >= 3.12 found: name one, as in make test-versions NEWEST=/path/to/python))
$(UV) venv --quiet --clear --python $(2) $(1)
$(UV) pip install --quiet --python $(1) $(3) -e ".[test]"
$(1)/bin/python --version
@$(UV) pip freeze --quiet --python $(1) | grep -E "^($(VERSIONS_SHOWN))=" | paste -s -d " " -
JAX_PLATFORMS=cpu $(1)/bin/python -m pytest --numprocesses 2 --dist loadfile -m "not slow" $(PYTEST_ARGS) $(VERSIONS_TESTS)
endef

test-lowest: $(UV)
	$(call test-with,.venv-lowest,$(LOWEST),--resolution lowest-direct)

test-newest: $(UV)
	$(call test-with,.venv-newest,$(NEWEST),--upgrade)

# Do the tests notice small mistakes? Applies those of tests/mutants.toml, one at a time, to copies of the package.
mutants: $(VENV)/.installed-test
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.run_mutants --jobs 2 $(MUTANTS_ARGS)

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.operators
	$(BIN)/python -m benchmarks.after_image
	$(BIN)/python -m benchmarks.recgaze_reader
	$(BIN)/python -m benchmarks.input_pipeline
	$(BIN)/python -m benchmarks.low_precision
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.checkpoint
	$(BIN)/python -m benchmarks.users
	$(BIN)/python -m benchmarks.emulator

# Wants an accelerator, and JAX for it: $(BIN)/pip install "jax[cuda12]"
bench-gpu: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.real_size

results: $(VENV)/.installed
	$(BIN)/python train/results_human_choice.py --data-path $(DATA) --backbone $(BACKBONE) --out runs/human-choice$(SUFFIX)

results-operators: $(VENV)/.installed
	$(BIN)/python train/results_operators.py --data-path $(DATA) --out runs/operators

results-scale: $(VENV)/.installed
	$(BIN)/python train/results_scale.py --data-path $(DATA) --out runs/scale

clean:
	rm -rf $(VENV) .jax-cache build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
