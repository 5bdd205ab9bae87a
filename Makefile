# make demo   install, then the whole path on the built-in digits: table, report.html, TensorBoard
# make test   install, then ruff, mypy and every test: what CI runs
# make check  the fast part of it: no test that takes seconds, and of each the first and last case
# make tb     TensorBoard on runs/
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
# Pinned here and nowhere else: pyproject.toml holds a range. Installed first and alone, so that no
# other package pulls in a build with CUDA.
TORCH := torch==2.13.0
PACKAGE := $(VENV)/.package
READY := $(VENV)/.installed
TESTS := $(PY) -m pytest -n 2
# The package as it is installed, agents/ and experiments/ inside it: what mypy looks at.
HOUSE := $(VENV)/house

.PHONY: demo test check lint tb

demo: $(PACKAGE)
	$(PY) -m experiments.run --config experiments/configs/digits.toml

test: $(READY) lint
	$(TESTS) -m "not slow"

check: $(READY) lint
	$(TESTS) --thin -m "not slow and not long"

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	rm -rf $(HOUSE) && mkdir -p $(HOUSE)/prune_env
	ln -s $(CURDIR)/prune_env/* $(CURDIR)/agents $(CURDIR)/experiments $(HOUSE)/prune_env/
	cd $(HOUSE) && MYPYPATH=. MYPY_NUM_WORKERS=2 $(CURDIR)/$(VENV)/bin/mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache -p prune_env

tb: $(PACKAGE)
	$(VENV)/bin/tensorboard --logdir runs --host 127.0.0.1

$(PACKAGE): pyproject.toml Makefile
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(PY) -m pip install --quiet --disable-pip-version-check -e .
	touch $@

# What tests and linters need comes on top.
$(READY): $(PACKAGE)
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@
