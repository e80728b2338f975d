# make demo: installs, fetches the data, runs the experiment.   make test: installs, fetches the data, runs the tests.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test data machine

help:
	@grep '^# make' Makefile

demo: .venv/.installed data
	@begin=$$(date +%s) && $(BIN)/dualipo run && taken=$$(($$(date +%s) - begin)) && \
		echo "The run took $$((taken / 60)) min $$((taken % 60)) s. The report: $(CURDIR)/report/index.html"

test: .venv/.installed-test data machine
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The remote lies in the repository: no network. A folder without data.dvc has its data already, or brings its own.
data: .venv/.installed
	@if [ -f data.dvc ]; then $(BIN)/dvc pull --quiet data.dvc; fi

# Programs of Debian's that some tests start: the report's browser, MLflow's database. Where one is missing and can't be
# installed, the tests that need it say so.
machine:
	@lacking=; \
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || lacking="chromium chromium-driver"; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || lacking="$$lacking postgresql"; \
	if [ -n "$$lacking" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$lacking; \
		else echo "not on this machine, so some tests are skipped: $$lacking"; fi; \
	fi

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv; this takes some minutes"
	$(PIP) -e .
	@touch $@

# MLflow's authorisation by Kubernetes asks for Python 3.12, which its image has; the code runs on 3.11 too.
.venv/.installed-test: .venv/.installed k8s/images/mlflow-requirements.txt
	$(PIP) -e '.[test]'
	$(PIP) --no-deps --ignore-requires-python $$(grep ^mlflow-kubernetes-plugins k8s/images/mlflow-requirements.txt)
	@touch $@
