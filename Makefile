# Commands for work in the source tree. They need make and Python 3.11 or newer; everything else is installed in .venv/.
PYTHON ?= python3.11
VENV := .venv
# The Slicer that `make package` builds the archive for: its version, and linux or win.
SLICER_VERSION ?= 5.12
SLICER_OS ?= linux
BIN := $(VENV)/bin
REQUIREMENTS := $(filter-out requirements/debian.txt,$(wildcard requirements/*.txt))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Three processes with one thread each keep two cores busy, because many tests wait for an engine or a training to start.
# Each test file goes to one process, so that its shared fixtures are created once; those with the longest tests go first
# (Testing/Python/conftest.py).
TEST_PROCESSES ?= 3
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: help setup test test-all demo screenshots lint lists package benchmarks clean

help:
	@echo "make setup       create .venv/; the other commands do this, too (about 2 minutes)"
	@echo "make test        run the tests (about 8 to 20 minutes on two idle cores)"
	@echo "make test-all    also run the long tests"
	@echo "make demo        segment real cases through the module's logic; pictures and files go to demo/"
	@echo "make demo CT=/path/to/ct.nii.gz   also segment a CT of the head and neck"
	@echo "make screenshots DATA=/path/to/Task04_Hippocampus  render Screenshots/ again, which includes a short training"
	@echo "make lint        check the style of the Python sources"
	@echo "make lists       list every file of the Slicer modules in their CMakeLists.txt"
	@echo "make package     build the wheel and the extension archive in dist/ (SLICER_VERSION=5.12 SLICER_OS=linux)"
	@echo "make benchmarks  install nnU-Net, for the benchmarks that compare with it, in .venv-nnunet/"
	@echo "make clean       remove everything that these commands created, including .venv/"

setup: $(VENV)/ready

test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m ""

demo: setup
	$(BIN)/python Testing/Demo/demo.py demo $(CT)

screenshots: demo
	$(BIN)/python Testing/Demo/training_demo.py $(DATA)
	cd demo && cp $(notdir $(wildcard Screenshots/*.png)) ../Screenshots

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

# nnU-Net gets an environment of its own, so that its packages and ours need not agree.
benchmarks: setup
	$(BIN)/python Testing/Benchmarks/nnunet_tools.py

clean:
	rm -rf $(VENV) .venv-nnunet build dist demo .pytest_cache .ruff_cache .hypothesis

# torch is installed first and separately, so that a CPU build that is already there, or that pip finds first, is kept.
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
	    echo "Python 3.11 or newer is required, but '$(PYTHON)' is not available or too old. Install it, or use make PYTHON=/path/to/python"; \
	    exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" || { \
	    echo "'$(PYTHON)' cannot create virtual environments. On Debian or Ubuntu: sudo apt-get install python3-venv"; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)
