# Each target does its own set-up: on a fresh machine nothing else has to be typed.
#   make demo    flow on a short clip, ends with the path of an HTML page   (WEIGHTS=file.pth for other weights)
#   make test    the test suite                                             (ARGS="-k corr" to choose tests)
#   make extras  the tests of optional packages (gradio, peft, TensorBoard, torchvision), in build/extras
#   make gpu     on a machine with an NVIDIA GPU: build, check, time; writes benchmarks/results/<gpu>-<date>.jsonl
#   make bench   the benchmarks on this CPU
#   make sanitize  CPU kernels, renderer and readers under AddressSanitizer and UndefinedBehaviorSanitizer, in build/sanitize
#   make docs    the documentation as a site, in build/site
#   make lint    ruff, clang-format and mypy
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

# Test processes, one thread each: small tensors gain nothing from more threads.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))

# An environment on top of the first one; torchvision lies in a folder that only its tests look into, see
# tests/with_torchvision.py. Its version is the one of the torch in requirements.txt.
EXTRAS := build/extras
EXTRA_TESTS := tests/cli/test_app.py tests/train/test_lift.py tests/train/test_trainer.py tests/models/test_weights.py \
  tests/docs/test_example_files.py

NATIVE := setup.py CMakeLists.txt pyproject.toml $(shell find _build csrc kernels/cuda -type f -not -name '*.pyc' | sort)

.PHONY: demo test extras gpu bench sanitize docs lint clean
.DELETE_ON_ERROR:

$(VENV)/.packages: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.packages $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

demo: $(VENV)/.built
	$(BIN)/daflow demo $(if $(WEIGHTS),--weights $(WEIGHTS))

test: $(VENV)/.built
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

$(EXTRAS)/.packages: requirements-extras.txt $(VENV)/.built
	$(BIN)/python -m venv $(EXTRAS)
	site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  echo "import site; site.addsitedir('$$site')" > "$$(echo $(EXTRAS)/lib/python*/site-packages)/base.pth"
	$(EXTRAS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-extras.txt
	$(EXTRAS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(EXTRAS)/torchvision torchvision==0.28.0
	touch $@

extras: $(EXTRAS)/.packages
	TORCHVISION=$(CURDIR)/$(EXTRAS)/torchvision OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m pytest -q --runslow \
	  -k "app or lora or adapters or tensorboard or torchvision" $(EXTRA_TESTS)

bench: $(VENV)/.built
	$(BIN)/python -m benchmarks.run $(ARGS)

# Half an hour the first time on one core: all kernels compile anew.
sanitize: $(VENV)/.packages
	$(BIN)/python -m tests.reliability.sanitize $(ARGS)

lint: $(VENV)/.packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy

docs: $(VENV)/.built
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

# Uses the machine's own torch (a CUDA build), no virtual environment and no network; builds for this GPU only. A test
# that fails does not keep the benchmarks from running, each of which checks its own results.
gpu:
	archs=$$($(PYTHON) -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())'); \
	  DAFLOW_CUDA=1 DAFLOW_CUDA_ARCHS=$${DAFLOW_CUDA_ARCHS:-$$archs} $(PYTHON) setup.py -q build_ext --inplace
	jobs=$$($(PYTHON) -c 'import xdist' 2>/dev/null && echo "-n $(JOBS)" || true); status=0; \
	  $(PYTHON) -m pytest -q $$jobs -m gpu --durations 10 tests || status=$$?; \
	  $(PYTHON) -m benchmarks.run --device cuda --quick --save || status=$$?; exit $$status

clean:
	rm -rf build $(VENV) *.egg-info daflow_ext/*.so
