# Commands for developers and users of the source tree. They need Python 3.11 and make, and set up the rest in .venv/.
PYTHON ?= python3.11
VENV := .venv
# The Slicer that `make package` packs for: its version, and linux or win.
SLICER_VERSION ?= 5.12
SLICER_OS ?= linux
BIN := $(VENV)/bin
REQUIREMENTS := $(filter-out requirements/debian.txt,$(wildcard requirements/*.txt))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Two processes, each with whole files, so that what the tests of a file share is made once; a thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help setup test test-all demo lint lists package clean

help:
	@echo "make test      run the tests (about 10 minutes)"
	@echo "make test-all  run the long tests too"
	@echo "make demo      segment a real case through the module's logic; pictures and files go to demo/"
	@echo "make lint      check the style of the Python sources"
	@echo "make lists     name every file of a Slicer module in its CMakeLists.txt"
	@echo "make package   build the wheel and the extension archive in dist/ (SLICER_VERSION=5.12 SLICER_OS=linux)"
	@echo "make clean     remove what these commands made, .venv/ too"

setup: $(VENV)/ready

test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m ""

demo: setup
	$(BIN)/python Testing/Demo/demo.py

lint: setup
	$(BIN)/ruff check .

lists:
	$(PYTHON) Utilities/update_module_lists.py

package: setup
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/cmake -S . -B build/extension --toolchain Testing/CMake/no_compiler.cmake \
	    -DSlicer_DIR=$(CURDIR)/Testing/CMake/SlicerStandIn \
	    -DSlicer_VERSION=$(SLICER_VERSION) -DSlicer_OS=$(SLICER_OS)
	$(BIN)/cmake --build build/extension
	$(BIN)/cpack --config build/extension/CPackConfig.cmake -B build/archive
	cp build/archive/*.* dist/

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .ruff_cache .hypothesis

# torch goes first and in a command of its own, so that a CPU build installed or offered beforehand is kept.
$(VENV)/requirements: $(REQUIREMENTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(shell cat requirements/torch.txt)
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt \
	    -r requirements/torch.txt -r requirements/engine.txt -r requirements/training.txt -r requirements/tests.txt
	@touch $@

$(VENV)/ready: $(VENV)/requirements pyproject.toml Testing/check_machine.py
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python Testing/check_machine.py
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	    echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not that. Install it, or name it: make PYTHON=/path/to/python3.11"; \
	    exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" || { \
	    echo "This Python cannot make virtual environments. On Debian or Ubuntu: sudo apt-get install python3.11-venv"; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)
