# Set-up happens by itself, and again only when pyproject.toml changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPECHECK := build/check

.PHONY: help demo test check format test-gpu clean

help:
	@echo "make demo    the whole way on bundled data, ends in build/demo/report.html"
	@echo "make test    format, lint, types, import rules, then every test"
	@echo "make check   only the checks that run no test"
	@echo "make format  put the code into the house format"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "nm2trt needs Python 3.10 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,rtx]'
	touch $@

demo: $(STAMP)
	$(BIN)/nm2trt demo -o build/demo --force

test: check
	$(BIN)/pytest

# Type and import checkers cannot follow the editable mapping of training/ and calibration/,
# so they read the wheel's own layout, unpacked into a folder.
check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf $(TYPECHECK) build/lib build/bdist.*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target $(TYPECHECK) .
	cd $(TYPECHECK) && $(abspath $(BIN))/mypy --config-file $(abspath pyproject.toml) -p nm2trt
	cd $(TYPECHECK) && PYTHONPATH=. $(abspath $(BIN))/lint-imports --config $(abspath pyproject.toml) --cache-dir $(abspath build/import_cache)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-gpu: $(STAMP)
	$(BIN)/pytest -m "gpu or tensorrt"

clean:
	rm -rf build $(VENV) *.egg-info
