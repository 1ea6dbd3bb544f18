# Needs Python 3.11 or newer (set PYTHON= if `python3` is older), pip and make. The first run fills .venv.
PYTHON ?= python3
SOURCE ?=
TARGET ?=
OUT ?= out/swap.png
CONSENT ?=
RUNS ?= runs/default
DEVICE ?= cpu
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo swap test test-all lint format bench train-default train-simswap clean

help:
	@echo "make demo                              faces that do not exist, swapped and anonymised: see out/"
	@echo "make swap SOURCE=me.jpg TARGET=you.jpg [OUT=out/swap.png] [CONSENT='who, how']"
	@echo "make train-default [RUNS=runs/default] the shipped networks, trained from nothing; the same command continues"
	@echo "make train-simswap [RUNS=…]            the shipped SimSwap network, taught by the first method"
	@echo "make test | test-all | lint | format | bench | clean"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "latentswap needs Python 3.11 or newer: make PYTHON=/path/to/python3")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (only when pyproject.toml or constraints.txt changed)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train,demo]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python scripts/demo.py

swap: $(STAMP)
	@test -n "$(SOURCE)" -a -n "$(TARGET)" || { echo "usage: make swap SOURCE=face.jpg TARGET=picture.jpg [OUT=out/swap.png] [CONSENT='who, how']" >&2; exit 2; }
	@mkdir -p "$(dir $(OUT))"
	$(BIN)/latentswap swap "$(SOURCE)" "$(TARGET)" -o "$(OUT)" $(if $(CONSENT),--consent "$(CONSENT)")

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/latentswap models fetch
	$(BIN)/pytest -n 2

test-all: lint
	$(BIN)/latentswap models fetch
	$(BIN)/pytest -n 2 -m "not gpu and not browser"

bench: $(STAMP)
	$(BIN)/latentswap models fetch
	for script in benchmarks/*.py; do $(BIN)/python "$$script" || exit 1; done

# Head, people, population, encoder, mixer: with the defaults of `latentswap train` the settings of the shipped files.
TRAIN := $(BIN)/latentswap train
MIXER := --people-from $(RUNS)/people --encoder $(RUNS)/encoder/encoder.safetensors --device $(DEVICE)
train-default: $(STAMP)
	$(BIN)/latentswap models fetch
	$(TRAIN) head -o $(RUNS)/head
	$(TRAIN) people -o $(RUNS)/people --workers 2 --device $(DEVICE)
	$(TRAIN) population -o $(RUNS)/population --people-from $(RUNS)/people --device $(DEVICE)
	$(TRAIN) encoder -o $(RUNS)/encoder --people-from $(RUNS)/people --device $(DEVICE)
	$(TRAIN) mixer -o $(RUNS)/first $(MIXER) --detail 0 --features 0 --pixel 0 --identity 1.5
	$(TRAIN) mixer -o $(RUNS)/second $(MIXER) --start $(RUNS)/first/mixer.safetensors --steps 580 --lr 4e-4
	$(TRAIN) mixer -o $(RUNS)/mixer $(MIXER) --start $(RUNS)/second/mixer.safetensors --steps 1200 --lr 5e-4 \
		--identity 2.5 --away 0.4 --detail 6 --features 1

# The shipped SimSwap network, taught by the shipped mixer; on the people of train-default where they are.
train-simswap: $(STAMP)
	$(BIN)/latentswap models fetch
	$(TRAIN) people -o $(RUNS)/people --workers 2 --device $(DEVICE)
	$(TRAIN) lessons -o $(RUNS)/lessons --people-from $(RUNS)/people --workers 2 --device $(DEVICE)
	$(TRAIN) simswap -o $(RUNS)/simswap --people-from $(RUNS)/people --lessons-from $(RUNS)/lessons --device $(DEVICE)

clean:
	rm -rf .venv out .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
