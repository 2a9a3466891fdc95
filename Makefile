# Every target brings its own extras into .venv, once per change of pyproject.toml or constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-newest newest-part lint bench ptx clean
.DELETE_ON_ERROR:

demo: .venv/.with-core
	$(BIN)/terramind-cube demo demo

test: .venv/.with-test,notebooks
	$(BIN)/python -m pytest tests --durations=15

# The newest Python here and the newest releases of everything; torch for it is several gigabytes.
test-newest:
	.ci/newest all

# What needs no torch.
newest-part:
	.ci/newest part

lint: .venv/.with-dev,notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.with-test
	$(BIN)/python -m pytest benchmarks --benchmark-columns=min,median,rounds -s

# Machine code of the CUDA kernels; needs no GPU, but large compilers.
ptx: .venv-ptx/.ready
	.venv-ptx/bin/python -m pytest --noconftest -o filterwarnings=error tests/kernels/test_cuda_ptx.py

clean:
	rm -rf .venv .venv-ptx .venv-newest .venv-newest-part demo

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "terramind_cube needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/.with-core: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.with-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	touch $@

.venv-ptx/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-ptx
	.venv-ptx/bin/python -m pip install --quiet --constraint constraints.txt numba "numba-cuda[cu12]" pytest
	touch $@
