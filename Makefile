# `make test` and `make demo` do everything, set-up included; `make help` lists the rest.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: side by side they are faster and steadier than two threads in one.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Inside the environment nothing is taken from a user's own site-packages.
export PYTHONNOUSERSITE := 1
MAX_JOBS ?= 2
export MAX_JOBS

.PHONY: help setup test test-long demo lint format docs wheel clean wheelhouse

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16


setup:  ## everything `test` and `demo` need, in .venv; seconds when nothing has changed
	@bash .ci/setup.sh "$(PYTHON)" "$(VENV)"

test: setup  ## the tests
	$(BIN)/python -m pytest -m "not long"

test-long: setup  ## the long tests too: kill tests, sanitizers, documents' commands, browser
	$(BIN)/python -m pytest -m "long"

demo: setup  ## the main job on the embedded sample: labels, training, evaluation, report
	$(BIN)/python tools/run_sample.py --output output/demo

lint: setup  ## ruff, check and format; types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff correct what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## the documentation as pages, docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

wheel: setup  ## sdist and wheel in dist/, smoke-tested; PYTHONS="python3.10 ...": in empty environments too
	bash packaging/check_wheel.sh $(VENV) dist $(PYTHONS)

wheelhouse:  ## the wheels an offline machine lacks: PYTHON=3.12 HAVE=pip-list.txt
	python3 packaging/wheelhouse.py --python "$(PYTHON)" $(if $(HAVE),--have "$(HAVE)") --output wheelhouse

clean:  ## remove the environment and everything built (not output/)
	rm -rf $(VENV) build dist docs/_build docs/api *.egg-info wsis_d2/*.so wsis_d2/_build_info.json wheelhouse
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
