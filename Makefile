# Everything below sets itself up in a fresh clone, in a virtual environment in .venv. No GPU is used, but by gpu-check.
# PyPI's torch for Linux brings CUDA; to get the small CPU build, pass PyTorch's index for it: make test TORCH_INDEX=URL
PYTHON ?= python3
VENV ?= .venv
WEIGHTS ?=
WORKERS ?= 2
TORCH_INDEX ?=
BCCD ?= ../shared/data/bccd
PEERS ?= build/peers
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A worker takes tests from the other's end of the list, so that what a test file shares is seldom made twice.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup test test-all lint format demo wheel-check tensorrt-check gpu-check bench report peers precision clean

help:
	@echo "make demo [WEIGHTS=FILE]  export, detect on a picture, show boxes and times"
	@echo "make test                 run the tests that take no minutes (about 6 minutes on two cores)"
	@echo "make test-all             run all tests, as CI does (about 14 minutes on two cores)"
	@echo "make lint                 ruff, ruff format, mypy"
	@echo "make bench                measure this machine, rewrite benchmarks/results (after make peers; 10 to 20 minutes)"
	@echo "make report               make build/report.html of benchmarks/results"
	@echo "make peers                export the models to compare with, in environments of their own (BCCD=FOLDER)"
	@echo "make precision            measure FP16 and INT8 beside other converters' (BCCD=FOLDER; about an hour on two cores)"
	@echo "make tensorrt-check       check the TensorRT code against its real Python bindings (needs a C compiler)"
	@echo "make gpu-check            check the CUDA code on this machine's NVIDIA GPU (CUDA=12 before driver 580, ONLY='NAME ...', GPU_PYTHON=FILE)"
	@echo "make wheel-check          build the wheel, predict with it where torch is not installed"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[dev]'
	@touch $@

setup: $(INSTALLED)

test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m ""

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

GPU_ENV := build/gpu-check-cuda12

$(GPU_ENV)/.installed: benchmarks/gpu_check/requirements-cuda12.txt pyproject.toml
	$(PYTHON) -m venv $(GPU_ENV)
	$(GPU_ENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $< --editable '.[export,bench]'
	@touch $@

# GPU_PYTHON names an interpreter that has all that is needed. Without it the virtual environment is used, whose packages
# are made for CUDA 13; with CUDA=12, one for drivers before 580.
ifeq ($(CUDA),12)
GPU_PYTHON ?= $(GPU_ENV)/bin/python
gpu-check: $(GPU_ENV)/.installed
endif
gpu-check: $(if $(GPU_PYTHON),,setup)
	PYTHONPATH=$(CURDIR):$(CURDIR)/export:$(CURDIR)/benchmarks:$(CURDIR)/training:$(CURDIR)/tests/engine \
		$(or $(GPU_PYTHON),$(BIN)/python) -m gpu_check $(addprefix --only ,$(ONLY))

PIP_INSTALL := -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

peers:
	for name in ultralytics huggingface; do \
		$(PYTHON) -m venv $(PEERS)/$$name && \
		$(PEERS)/$$name/bin/python $(PIP_INSTALL) -r benchmarks/peers/requirements-$$name.txt || exit 1; \
	done
	$(PEERS)/ultralytics/bin/python -m pip uninstall --quiet --yes opencv-python
	$(PEERS)/ultralytics/bin/python $(PIP_INSTALL) --no-deps --force-reinstall \
		$$(grep opencv benchmarks/peers/requirements-ultralytics.txt)
	$(PEERS)/huggingface/bin/python benchmarks/peers/make_peers.py --output $(PEERS)/models \
		--only huggingface-r18 huggingface-r50
	$(PEERS)/ultralytics/bin/python benchmarks/peers/make_peers.py --output $(PEERS)/models \
		--annotations $(BCCD)/annotations/train.json --images $(BCCD)/train \
		--val-annotations $(BCCD)/annotations/val.json --val-images $(BCCD)/val

OURS := build/bench
BENCH := $(BIN)/rtdetr-bench
VAL := --images $(BCCD)/val --annotations $(BCCD)/annotations/val.json
RESULTS := benchmarks/results
AGAINST = $(addprefix --against ,$(1))

bench: setup
	$(BIN)/python -m rtdetr_bench.tools.random_models --output $(OURS) --variants r18 r50 hgnetv2-l
	$(BIN)/python -m rtdetr_bench.tools.random_models --output $(OURS) --variants r50 --weights-only
	$(BIN)/rtdetr-export --weights demo/blood-cells-r18.pth --output $(OURS)/blood-cells-r18.onnx
	$(BIN)/rtdetr-export --weights demo/blood-cells-r18.pth --output $(OURS)/blood-cells-r18-int8.onnx \
		--precision int8 --calibration $(BCCD)/train
	$(BENCH) --engine $(OURS)/rtdetr-r18.onnx --runs 40 --json $(RESULTS)/latency-640.json \
		$(call AGAINST,$(OURS)/rtdetr-r50.onnx $(OURS)/rtdetr-hgnetv2-l.onnx) \
		$(call AGAINST,$(sort $(filter-out %-trained.onnx,$(wildcard $(PEERS)/models/*.onnx))))
	$(BENCH) --engine $(OURS)/blood-cells-r18.onnx --runs 100 --json $(RESULTS)/latency-blood-cells.json $(VAL) \
		$(call AGAINST,$(OURS)/blood-cells-r18-int8.onnx $(PEERS)/models/yolov8n-trained.onnx)
	$(BENCH) nms --engine $(PEERS)/models/yolov8n-trained.onnx --against $(OURS)/blood-cells-r18.onnx $(VAL) \
		--json $(RESULTS)/nms-blood-cells.json
	$(BENCH) decoder --weights demo/blood-cells-r18.pth --runs 60 $(VAL) --json $(RESULTS)/decoder-blood-cells.json
	$(BENCH) decoder --weights $(OURS)/r50.pth --runs 30 --json $(RESULTS)/decoder-r50.json
	$(BENCH) encoder --variant r50 --runs 15 --json $(RESULTS)/encoder-r50.json

CONVERTERS := $(PEERS)/modelopt
CONVERTED := $(PEERS)/precision

$(CONVERTERS)/.installed: benchmarks/peers/requirements-modelopt.txt
	$(PYTHON) -m venv $(CONVERTERS)
	$(CONVERTERS)/bin/python $(PIP_INSTALL) -r $<
	@touch $@

precision: setup $(CONVERTERS)/.installed
	$(CONVERTERS)/bin/python $(PIP_INSTALL) --no-deps .
	$(BIN)/rtdetr-export --weights demo/blood-cells-r18.pth --output $(OURS)/blood-cells-r18.onnx
	$(CONVERTERS)/bin/python benchmarks/peers/convert_precision.py --model $(OURS)/blood-cells-r18.onnx \
		--calibration $(BCCD)/train --output $(CONVERTED)
	$(BENCH) precision --weights demo/blood-cells-r18.pth $(VAL) --calibration $(BCCD)/train \
		$$(for file in $(CONVERTED)/*.onnx; do echo --against $$file; done) \
		--json $(RESULTS)/precision-blood-cells-r18.json

report: setup
	$(BENCH) report --output build/report.html $(addprefix $(RESULTS)/,latency-blood-cells.json nms-blood-cells.json \
		latency-640.json decoder-blood-cells.json decoder-r50.json encoder-r50.json \
		precision-blood-cells-r18.json roofline-t4.json) \
		$(wildcard $(RESULTS)/sweep-*.json $(RESULTS)/profile-*.json $(RESULTS)/ablation-*.json)

clean:
	rm -rf $(VENV) build dist demo/output .mypy_cache .pytest_cache .ruff_cache
