# Four commands: `make setup`, `make test`, `make demo`, `make docs`. Each does only what is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: setup test demo docs lint clean

setup: .venv/.installed

# pip alone: it is what a fresh machine has.
.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.[dev]'
	touch $@

test: setup
	$(BIN)/python -m pytest

demo: setup
	$(BIN)/python -m pipelines demo

# Material says of itself that it ends in 2027: docs/dependencies.md.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --config-file docs/site/mkdocs.yml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build *.egg-info
