# `make demo` and `make test` need Python 3.11+, git and make; everything else they install into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt
# Some container images set it; then each of the hundreds of processes that the tests start would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

SOURCE ?= sample
PARAMS ?=
PARAMS1 = $(if $(PARAMS),$(PARAMS),params_btlm_tiny_2k.yaml)
PARAMS2 = $(if $(PARAMS),$(PARAMS),params_btlm_tiny_8k.yaml)

.PHONY: demo test check docs screenshots stress bench newest newest-installed newer oldest stage1 stage2 clean

demo: $(VENV)/.base
	$(BIN)/btlm-data prepare --source sample --seq-len 2048 --out shards/
	$(BIN)/btlm-data inspect shards/
	$(BIN)/btlm-data verify shards/

# A quarter of the tests' time is waiting (for processes, browsers, servers): three at a time keep two cores busy. Each worker begins with
# neighbours, which share what is prepared for a file of tests, and takes over half of another's rest when it is done.
PARALLEL := -n 3 --dist worksteal

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m "not stress and not bench"

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

# The documentation as a site that opens from the disk: build/site/index.html.
docs: $(VENV)/.dev
	$(BIN)/python tools/write_docs.py --check
	$(BIN)/mkdocs build --quiet
	@echo "Open build/site/index.html."

# Pictures of every page that the browser tests open (report, serve, site), light and dark, wide and narrow: to be looked at.
screenshots: $(VENV)/.dev
	rm -rf build/screenshots
	SCREENSHOTS=build/screenshots $(BIN)/python -m pytest tests/pages/test_report_in_a_browser.py tests/pages/test_serve.py tests/generations/test_served.py tests/test_site.py
	@echo "Look at build/screenshots."

# First all that the tests draw, other examples each time; a failure says how it is had again.
stress: $(VENV)/.stress
	$(BIN)/python -m pytest $(PARALLEL) -m "not stress and not bench" --hypothesis-profile search
	$(BIN)/python -m pytest -m stress --timeout 7200

bench: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks

# What touches libraries most, with the newest of every dependency, and with the oldest that pyproject.toml allows.
TRIED ?= tests/formats tests/records tests/storage tests/tokenizer tests/test_api.py tests/test_locations.py
NOT_SLOW = -m "not stress and not bench"

EAGERLY := --upgrade --upgrade-strategy eager -c constraints.txt -e '.[test]'

newest: newest-installed
	.venv-newest/bin/python -m pytest $(PARALLEL) $(TRIED) $(NOT_SLOW)

oldest: .venv-oldest/.test
	.venv-oldest/bin/python -m pytest $(PARALLEL) $(TRIED) $(NOT_SLOW)

# --no-compile: Python compiles what the tests import, which is a small part of what is installed.
newest-installed:  # looked up each time: what is newest changes
	test -d .venv-newest || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check --no-compile $(EAGERLY)

# $(VENV)/.newer: the names of what `make newest` has in another version than $(VENV). None where all of that was installed just now:
# then `make test` tries the newest. --report: pip's own exit status is make's.
newer: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --dry-run --report $(VENV)/.report.json $(EAGERLY)
	$(BIN)/python -c 'import json; names = {one["metadata"]["name"] for one in json.load(open("$(VENV)/.report.json"))["install"]}; print(*names - {"btlm-data"}, end="")' > $(VENV)/.newer

.venv-oldest/.test: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints-oldest.txt -e '.[test]'
	touch $@

# BTLM's two data sets are disjoint parts of one corpus, so both pipelines name both parts; the second finds them prepared.
stage1: $(VENV)/.train
	$(BIN)/btlm-data run pipelines/stage1.yaml --source $(SOURCE)
	$(BIN)/btlm-train run --params $(PARAMS1) --mode train --model-dir runs/stage1 --set train_input.data_dir=runs/shards/msl2048/train

stage2: $(VENV)/.train
	$(BIN)/btlm-data run pipelines/stage2.yaml --source $(SOURCE)
	$(BIN)/btlm-train run --params $(PARAMS2) --mode train --model-dir runs/stage2 --checkpoint runs/stage1 --set train_input.data_dir=runs/shards/msl8192/train

# Built from source, once: llama.cpp, on which exported GGUF files are tried (some ten minutes), and KenLM (one).
$(VENV)/.stress: $(VENV)/.dev
	$(PIP) llama-cpp-python -e '.[perplexity,presidio]'
	touch $@

clean:
	rm -rf shards runs build dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.train: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[train]'
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $@
