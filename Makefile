# `make help` lists the verbs. Variables: PYTHON (3.11 or 3.12), VENV, and TORCH, what pip is asked for as PyTorch
# (it may carry pip's own options, to choose another build).
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet
READY := $(VENV)/.pcl_loss-ready

.DEFAULT_GOAL := help
.PHONY: help setup demo bench test test-all test-gpu lint format options clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make the virtual environment (once; skipped when nothing changed)

# BasicSR's build wants torch, and pip's isolated build would download it a second time (5.6 GB): so torch first, and
# BasicSR without isolation.
$(READY): setup.py Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || { \
	  echo "pcl_loss needs Python 3.11 or 3.12 (BasicSR does not install on 3.13), but $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(VENV)/bin/python || { echo "set-up 1/4: virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "set-up 2/4: $(TORCH) and what BasicSR builds with (several GB; minutes on a slow line)"
	@$(PIP) $(TORCH) numpy cython wheel setuptools
	@echo "set-up 3/4: BasicSR"
	@$(PIP) --no-build-isolation 'basicsr>=1.4.2'
	@echo "set-up 4/4: pcl_loss, editable, with its test, plot and metric extras"
	@$(PIP) --no-build-isolation --editable '.[metrics,plots,test]'
	@touch $@

demo: setup ## the main job: train a small EDSR with L1 and with L1 + PCL on real images, compare (about 6 minutes on two idle cores)
	$(VENV)/bin/pcl-loss demo

bench: setup ## what a training step costs, in time and memory, as tables and step_cost.json (about 16 minutes on two idle cores)
	$(VENV)/bin/python benchmarks/step_cost.py

test: setup lint ## ruff, mypy and the test suite without its slow part
	$(VENV)/bin/python -m pytest -m "not slow"

test-all: setup lint ## the same with the slow tests
	$(VENV)/bin/python -m pytest

test-gpu: setup ## the tests that need a GPU (no GPU has run them yet)
	$(VENV)/bin/python -m pytest -m cuda

lint: setup ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup ## let ruff format the code
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

options: setup ## write basicsr_options/ anew from scripts/make_options.py
	$(VENV)/bin/python scripts/make_options.py

clean: ## remove the virtual environment and the caches (experiments/ stays)
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
