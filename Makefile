# `make help` lists the verbs. Variables: PYTHON (3.11 or 3.12; 3.13 without BasicSR), VENV, and TORCH, what pip is asked
# for as PyTorch (it may carry pip's own options, to choose another build).
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision
# The lower bound of setup.py, and the torchvision that belongs to it: make test TORCH='$(OLDEST_TORCH)'
OLDEST_TORCH := torch==2.5.1 torchvision==0.20.1

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet
READY := $(VENV)/.pcl_loss-ready

.DEFAULT_GOAL := help
.PHONY: help setup demo bench test pytest test-all test-gpu test-versions gpu-report release-check lint format options \
        clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make the virtual environment (once; skipped when nothing changed)

# BasicSR's build wants torch, and pip's isolated build would download it a second time (5.6 GB): so torch first, and
# BasicSR without isolation.
$(READY): setup.py Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "pcl_loss needs Python 3.11 or 3.12 (or 3.13, without BasicSR), but $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(VENV)/bin/python || { echo "set-up 1/3: virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "set-up 2/3: $(TORCH) and what BasicSR builds with (several GB; minutes on a slow line)"
	@$(PIP) $(TORCH) numpy cython wheel setuptools
	@echo "set-up 3/3: pcl_loss, editable, with all extras (BasicSR among them, but not on Python 3.13)"
	@$(PIP) --no-build-isolation --editable '.[all,test]'
	@touch $@

demo: setup ## the main job: train a small EDSR with L1 and with L1 + PCL on real images, compare (about 3 minutes on two idle cores)
	$(VENV)/bin/pcl-loss demo

bench: setup ## what a training step costs, in time and memory, as tables and step_cost.json (about 16 minutes on two idle cores)
	$(VENV)/bin/python benchmarks/step_cost.py

test: lint pytest ## ruff, mypy and the test suite without its slow part

pytest: setup ## the same without ruff and mypy
	$(VENV)/bin/python -m pytest -m "not slow"

test-all: setup lint ## the same with the slow tests
	$(VENV)/bin/python -m pytest

test-gpu: setup ## the tests that need a GPU (no GPU has run them yet)
	$(VENV)/bin/python -m pytest -m cuda

test-versions: ## the test suite on the oldest PyTorch and on Python 3.11, 3.12, 3.13 (an environment each; an hour)
	$(MAKE) pytest PYTHON=python3.11 VENV=.venv-versions/oldest TORCH='$(OLDEST_TORCH)'
	for version in 3.11 3.12 3.13; do $(MAKE) pytest PYTHON=python$$version VENV=.venv-versions/$$version || exit 1; done

gpu-report: setup ## for a machine with a GPU: all that it can tell, as gpu_report.md (under an hour; no GPU has run it yet)
	$(VENV)/bin/python scripts/gpu_report.py

release-check: ## sdist and wheel, built into dist/ and used as a stranger does (20 GB of traffic; TAG=vX.Y.Z: for that tag)
	PYTHON=$(PYTHON) TAG=$(TAG) scripts/release_check.sh

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
	rm -rf $(VENV) .venv-versions build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
