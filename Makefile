# Everything here works on a fresh machine with Python 3.10 to 3.13: the first target that runs makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

# What touches precision, kernels, the demo and training: it is tested as on an older processor too.
BY_PROCESSOR := tests/conformance tests/training/test_arguments.py tests/training/test_trainer.py \
	tests/common/test_precision.py tests/backbone/test_recurrence.py tests/backbone/test_cells.py \
	tests/kernels/test_lstm.py tests/kernels/test_scan.py tests/kernels/test_linear.py \
	tests/kernels/test_recall_numba.py tests/bank/test_nearest.py tests/history/test_loss.py \
	tests/history/test_overlay.py tests/cli/test_demo.py

.PHONY: demo serve test test-older test-bare matrix lint wheel benchmark clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e ".[test,lint,wheel]"
	touch $@

# Trains, measures and saves a language model on the Python standard library, then completes text with it.
# Other data: make demo ARGS="--dataset Salesforce/wikitext"
demo: $(READY)
	$(BIN)/lle demo $(ARGS)

# Trains a language model, a classifier and a translator if they are not there, and serves them with a page to teach them:
# http://127.0.0.1:8000. Other options of lle serve: make serve ARGS="--port 9000"
serve: $(READY)
	test -e runs/demo/bank || $(BIN)/lle demo --minutes 2
	$(BIN)/python -m modeling_lle.serving.page_demo runs
	$(BIN)/lle serve writer=runs/demo intents=runs/intents en-de=runs/en-de --bank writer=runs/demo/bank \
		--bank intents=runs/intents --histories runs/histories $(ARGS)

# ARGS="-m slow" runs the slow tests, ARGS="-m server" those of servers, ARGS="-m hub" those that need the real Hub.
test: $(READY)
	$(PYTEST) $(ARGS)

# As on a processor with AVX2 and nothing newer, and as on one without it.
test-older: $(READY)
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 NUMBA_CPU_NAME=haswell $(PYTEST) $(BY_PROCESSOR) $(ARGS)
	ATEN_CPU_CAPABILITY=default $(PYTEST) $(BY_PROCESSOR) $(ARGS)

# Without the optional packages: what needs one says which extra to install, everything else works.
test-bare: $(READY)
	LLE_HIDE=numba,faiss,pymilvus,milvus_lite,matplotlib,sklearn,sacrebleu,bm25s,polib,rapidfuzz,fastapi $(PYTEST) $(ARGS)

# Installs and tests with Python 3.10, 3.12 and 3.13, those that this machine has.
matrix:
	$(PYTHON) -m scripts.matrix $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Builds the wheel into dist/, and tries it in a fresh environment outside this tree.
wheel: $(READY)
	$(BIN)/python -m scripts.wheel $(ARGS)

# Speed and quality tables of model_cards/results: ARGS="speed", ARGS="recurrences", ...
# ARGS="classification ..." compares with what .venv/bin/pip install -c constraints.txt -e ".[benchmark]" brings.
benchmark: $(READY)
	$(BIN)/python -m scripts.benchmark $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info runs
