# `make erase`: environment, installation, an erased style with scores and picture. `make app`: the same, then the demo
# in the browser. `make test`: the same, then tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TARGET ?= twemoji
KIND ?= style
WORKERS ?= auto

.PHONY: erase app test lint format screenshots clean

erase: $(VENV)/installed
	$(BIN)/concept-erase erase "$(TARGET)" --kind $(KIND) --out erased/$(subst $() ,-,$(TARGET))

app: $(VENV)/installed
	$(BIN)/concept-erase demo

test: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

screenshots: $(VENV)/installed-dev
	CONCEPT_ERASE_SCREENSHOTS=1 $(BIN)/python -m pytest tests/browser/test_screenshots.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
