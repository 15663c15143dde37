# Everything below sets itself up in a fresh clone, in a virtual environment in .venv. No GPU is used.
# PyPI's torch for Linux brings CUDA; to get the small CPU build, pass PyTorch's index for it: make test TORCH_INDEX=URL
PYTHON ?= python3
VENV ?= .venv
WEIGHTS ?=
WORKERS ?= 2
TORCH_INDEX ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help setup test lint format demo wheel-check tensorrt-check clean

help:
	@echo "make demo [WEIGHTS=FILE]  export, detect on a photograph, show boxes and times"
	@echo "make test                 run the tests"
	@echo "make lint                 ruff, ruff format, mypy"
	@echo "make tensorrt-check       check the TensorRT code against its real Python bindings (needs a C compiler)"
	@echo "make wheel-check          build the wheel, predict with it where torch is not installed"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[dev]'
	@touch $@

setup: $(INSTALLED)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: setup
	$(BIN)/python demo/run_demo.py $(if $(WEIGHTS),--weights $(WEIGHTS))

wheel-check: setup
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --installer pip --outdir build/wheel . > /dev/null
	$(BIN)/python tests/wheel_check.py --make-model build/wheel/tiny.onnx
	$(PYTHON) -m venv --clear build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		"$$(ls build/wheel/rtdetr_deploy-*.whl)[cpu]"
	cd build/wheel && venv/bin/python $(CURDIR)/tests/wheel_check.py tiny.onnx

tensorrt-check: setup
	$(BIN)/python tests/engine/check_bindings.py

clean:
	rm -rf $(VENV) build dist demo/output .mypy_cache .pytest_cache .ruff_cache
