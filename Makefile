# Everything here works on a fresh machine with Python 3.10 to 3.13: the first target that runs makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint benchmark clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e ".[test,lint]"
	touch $@

# Trains, measures and saves a language model on the Python standard library, then completes text with it.
# Other data: make demo ARGS="--dataset Salesforce/wikitext"
demo: $(READY)
	$(BIN)/lle demo $(ARGS)

# ARGS="-m slow" runs the slow tests, ARGS="-m hub" those that need the real Hub.
test: $(READY)
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Speed and quality tables of model_cards/results: ARGS="speed", ARGS="recurrences", ...
# ARGS="classification ..." compares with what .venv/bin/pip install -c constraints.txt -e ".[benchmark]" brings.
benchmark: $(READY)
	$(BIN)/python -m scripts.benchmark $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info runs
