# The two commands: `make run`, `make test`. All settings: lyra_site/settings.py.
PYTHON ?= python3
VENV ?= .venv
# Where else to look for torch, e.g. the index of its CPU builds (README, "Two commands").
TORCH_INDEX ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
MANAGE := $(BIN)/python manage.py
TORCH := $(shell grep '^torch==' requirements.txt)

.DEFAULT_GOAL := help
.PHONY: help install install-dev run stop test check demo bench format

help:
	@echo "make run    serve at http://127.0.0.1:$${PORT:-8000} with demo data (PORT=, LYRA_HOME=)"
	@echo "make test   the whole test suite"
	@echo "make demo   the whole loop without a browser, in a fresh home"
	@echo "make check  format, lint, types, migrations, deployment settings"
	@echo "make bench  the loop on real data: DATA=directory with stream/ and guard/ (more in benchmarks/)"
	@echo "make stop   stop what \`make run\` started in this LYRA_HOME"

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the slowest download, and the one with a choice of builds.
$(VENV)/.installed: requirements.txt constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH) -c constraints.txt
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

# The shell is replaced, so that a signal to make reaches the supervisor.
run: export LYRA_COMPAT_OPEN ?= 1
run: install
	@exec $(MANAGE) run --demo

stop: install
	@LYRA_HOME="$${LYRA_HOME:-$(CURDIR)/var}" $(BIN)/supervisorctl --configuration lyra_site/supervisord.conf shutdown

test: install-dev
	@$(BIN)/python -m tests.programs
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MANAGE) makemigrations --check --dry-run
	LYRA_HTTPS=1 LYRA_PROXIES=1 LYRA_ALLOWED_HOSTS=lyra.example.org $(MANAGE) check --deploy --fail-level WARNING

demo: install
	@exec $(MANAGE) demo

bench: install
	$(if $(DATA),,$(error make bench DATA=directory with stream/ and guard/))
	$(BIN)/python benchmarks/loop.py --data $(DATA)

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
