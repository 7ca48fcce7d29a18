# Two commands matter: `make demo` and `make test`. Everything lives in .venv and .venv-triton here.
#
#   PYTHON=python3.11   the interpreter that makes the environments (3.11 or newer)
#   TORCH_INDEX=URL     a wheel index with a CPU build of torch, to avoid the CUDA build
#   PIP_ARGS=...        anything else pip should hear

PYTHON ?= python3
PIP_ARGS ?=
TORCH_INDEX ?=
BUNDLE ?= triton_repo/models
RECIPE ?= training/recipes/tiny.toml
CORPUS ?= data/tiny
RUN ?= runs/tiny
TESTS_OF := test_multi test_semi test_noise

# ONNX Runtime's wheels report usage by themselves; nothing here shall.
export ORT_DISABLE_TELEMETRY := 1

BIN := .venv/bin
PLATFORM := $(shell uname -s -m)
FLAGS := --disable-pip-version-check --quiet
# pip of the environment $(1); where it has none (no ensurepip), the interpreter's own pip
PIP_OF = $$($(1)/bin/python -m pip --version >/dev/null 2>&1 && echo $(1)/bin/python -m pip \
  || echo $(PYTHON) -m pip --python $(1)/bin/python)
INSTALL = $(call PIP_OF,$(1)) install $(FLAGS) $(PIP_ARGS)
MAKE_ENV = $(PYTHON) -m venv $(1) 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(1)
INDEX = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PACKAGES := sdk training export benchmarks
LOCK := pyproject.toml constraints.txt

.PHONY: demo test check bundle studies training-costs bench agreement lazy serve optimum triton install clean

demo: .venv/.demo  ## predict the sample clip with the checked-in bundle; no torch
	@mkdir -p out
	@$(BIN)/merkit predict docs/media/sample.mp4 --text "$$(cat docs/media/sample.txt)" \
	  --bundle $(BUNDLE) --report out/demo.html

test: .venv/.dev .venv-triton/.ready  ## the whole suite, the real Triton server included
	$(if $(filter Linux,$(PLATFORM)),$(if $(filter x86_64,$(PLATFORM)),MERKIT_TESTS_NEED_TRITON=1)) \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(TESTS)

check: .venv/.dev  ## lint, types, layers, wheel contents
	$(BIN)/ruff check $(PACKAGES) tests
	$(BIN)/ruff format --check $(PACKAGES) tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	rm -rf dist && $(BIN)/python -m build --wheel --no-isolation --outdir dist .
	$(BIN)/check-wheel-contents dist/*.whl

bundle: .venv/.dev  ## corpus, training, export, proof: rewrites $(BUNDLE)
	$(BIN)/merkit-train synth $(CORPUS) --recipe $(RECIPE)
	$(BIN)/merkit-train run $(RECIPE) --corpus $(CORPUS) --out $(RUN)
	$(BIN)/merkit-export build $(RUN) --out $(BUNDLE)
	$(BIN)/merkit-export verify $(BUNDLE) --run $(RUN) --report docs/parity.md \
	  $(TESTS_OF:%=--clips $(CORPUS)/clips/%)
	@mkdir -p out
	$(BIN)/python -m merkit_training.fusion.tables $(RUN) > out/modality-table.md
	mv out/modality-table.md docs/modality-table.md

studies: .venv/.dev  ## the seed's tables over seeds: hours; resumes; rewrites docs/studies
	$(BIN)/merkit-train hear training/studies/hearing.toml --corpus $(CORPUS) --out runs/studies \
	  --model $(RUN) --page docs/studies/hearing.md
	for study in emotion-vit internvit audio-text denoised joint-tuning text-tuning tuned-features; do \
	  $(BIN)/merkit-train study training/studies/$$study.toml --corpus $(CORPUS) --out runs/studies \
	    --page docs/studies/$$study.md || exit 1; done

training-costs: .venv/.dev  ## samples a second and memory of each training stage
	@mkdir -p out
	$(BIN)/python -m merkit_bench.training --recipe $(RECIPE) > out/training-costs.md
	mv out/training-costs.md docs/training-costs.md

bench: .venv/.dev .venv-triton/.ready  ## PyTorch, embedded and Triton side by side
	$(BIN)/python -m merkit_bench --bundle $(BUNDLE) --run $(RUN) --out out/bench \
	  $(if $(wildcard $(CORPUS)/clips/test_multi),--split $(CORPUS)/clips/test_multi)

agreement: .venv/.dev .venv-triton/.ready  ## served against embedded on whole test splits
	@mkdir -p out
	$(BIN)/python -m merkit_bench.agreement --bundle $(BUNDLE) \
	  --clips $(TESTS_OF:%=$(CORPUS)/clips/%) > out/agreement.md
	mv out/agreement.md docs/agreement.md

lazy: .venv/.dev  ## what lazy voting saves on whole test splits, and at the paper's shapes
	@mkdir -p out
	$(BIN)/python -m merkit_bench.lazy --bundle $(BUNDLE) --clips $(TESTS_OF:%=$(CORPUS)/clips/%) \
	  --recipes training/recipes/tiny.toml training/recipes/base.toml training/recipes/paper.toml \
	  > out/lazy-voting.md
	mv out/lazy-voting.md docs/lazy-voting.md

serve: .venv/.dev .venv-triton/.ready  ## the checked-in bundle on Triton, loopback
	$(BIN)/merkit serve $(BUNDLE)

optimum: .venv/.dev .venv-optimum/.ready  ## adopt what Optimum exports, with Optimum itself
	MERKIT_TESTS_NEED_OPTIMUM=1 $(BIN)/python -m pytest tests/export/test_optimum.py

triton: .venv-triton/.ready  ## the server's environment alone

install: .venv/.dev

clean:  ## environments, builds and outputs; never data/ or runs/
	rm -rf .venv .venv-triton .venv-optimum dist out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is not Python 3.11 or newer: run make PYTHON=python3.11 ..."; exit 1; }
	@$(call MAKE_ENV,.venv)

.venv/.demo: $(LOCK) | .venv/bin/python
	@echo "installing what inference needs into .venv"
	@$(call INSTALL,.venv) -c constraints.txt -e '.[demo]'
	@touch $@

.venv/.dev: $(LOCK) | .venv/bin/python
	@echo "installing what training, export and the tests need into .venv"
	@$(call INSTALL,.venv) $(INDEX) -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.demo

.venv-optimum/.ready: export/optimum-requirements.txt
	@echo "installing Hugging Face Optimum into .venv-optimum"
	@$(call MAKE_ENV,.venv-optimum)
	@$(call INSTALL,.venv-optimum) $(INDEX) -r export/optimum-requirements.txt
	@touch $@

# The wheel's server wants numpy<2 and so an environment of its own.
.venv-triton/.ready: triton_repo/requirements.txt
	@echo "installing Triton's wheel into .venv-triton"
	@$(call MAKE_ENV,.venv-triton)
	@if [ "$(PLATFORM)" = "Linux x86_64" ]; then $(call INSTALL,.venv-triton) -r triton_repo/requirements.txt; \
	  else echo "no Triton wheel for $(PLATFORM): tests that serve will be skipped"; fi
	@touch $@
