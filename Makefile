# make demo: installs, fetches the data, runs the experiment.   make test: installs, fetches the data, runs the tests.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test data browser

help:
	@grep '^# make' Makefile

demo: .venv/.installed data
	@begin=$$(date +%s) && $(BIN)/dualipo run && taken=$$(($$(date +%s) - begin)) && \
		echo "The run took $$((taken / 60)) min $$((taken % 60)) s. The report: $(CURDIR)/report/index.html"

test: .venv/.installed-test data browser
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The remote lies in the repository: no network. A folder without data.dvc has its data already, or brings its own.
data: .venv/.installed
	@if [ -f data.dvc ]; then $(BIN)/dvc pull --quiet data.dvc; fi

# For the report's browser test; where it can't be installed that test says so.
browser:
	@if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install -qq -y --no-install-recommends chromium chromium-driver; \
		else echo "no chromium and chromedriver: the browser test can't run; install both"; fi; \
	fi

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv; this takes some minutes"
	$(PIP) -e .
	@touch $@

.venv/.installed-test: .venv/.installed
	$(PIP) -e '.[test]'
	@touch $@
