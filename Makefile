# make demo    caption the shipped images with the shipped bundle (installs the light CPU extra, no torch)
# make test    everything CI runs: linters, types, import rules, tests
# make lint / make format / make docs / make gpu-check / make lock

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint format docs gpu-check lock clean
.DELETE_ON_ERROR:

demo: .venv/installed-cpu
	rm -rf demo-out
	$(BIN)/saccade caption examples/scenes --bundle examples/bundle --out demo-out --attention --show
	$(BIN)/saccade gallery demo-out --title "Saccade: what each word looked at"
	@echo "Open demo-out/gallery.html in a browser."

test: lint
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed-dev
	$(BIN)/python -m tests.cli_reference
	$(BIN)/python -m benchmarks.results_page

# On a machine with an NVIDIA GPU, in an environment that has the extras train, export and gpu: make gpu-check PYTHON=python3
gpu-check:
	$(PYTHON) -m pytest -m gpu -rs
	$(PYTHON) -m benchmarks.gpu

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Saccade needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed-%: requirements/%.txt pyproject.toml | .venv/bin/python
	$(PIP) install --quiet --require-hashes -r $<
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Hashed versions for every platform and Python. Needs uv; run after changing the dependencies in pyproject.toml.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade
lock:
	$(LOCK) pyproject.toml requirements/build.in --extra cpu --extra train --extra export --extra dev -o requirements/dev.txt
	$(LOCK) pyproject.toml requirements/build.in --extra cpu --constraint requirements/dev.txt -o requirements/cpu.txt

clean:
	rm -rf .venv demo-out build dist
