# make demo    a picture from nothing: install, download to a volume, serve, ask with the README's curl, stop
# make serve   keep a server running        MODEL_ID=org/name ROOT=DIR ARGS='--max-rows 8'
# make download  fill a volume              MODEL_ID=org/name ROOT=DIR ARGS='--variant fp16'
# make test    every test                   ARGS='-k name'
# make lint    ruff, mypy, hadolint
# make bench   sharing forwards against one at a time and against grouping, over HTTP; 15 minutes   ARGS=--quick
# make images-test  build and run both container images with buildah: as root, with the base image at hand
# make clean   remove what the above made

PYTHON   ?= python3
VENV     ?= .venv
ROOT     ?= demo-volume
MODEL_ID ?= examples/shapes
BIN      := $(VENV)/bin
# The embedded model comes from this checkout, every other from the Hub.
SOURCE   := $(if $(filter examples/shapes,$(MODEL_ID)),--source examples/shapes/model)

.DEFAULT_GOAL := help
.PHONY: help demo serve download test lint bench images-test clean

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.predictor
	$(BIN)/python examples/demo.py --root $(ROOT) --out demo.png

serve: $(VENV)/.predictor
	$(BIN)/python -m predictor --model-id $(MODEL_ID) --root $(ROOT) $(ARGS)

download: $(VENV)/.predictor
	mkdir -p $(ROOT)
	$(BIN)/python -m downloader --model-id $(MODEL_ID) --root $(ROOT) $(SOURCE) $(ARGS)

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile Dockerfile.downloader

bench: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m bench.load $(ARGS)

images-test: $(VENV)/.test
	$(BIN)/python -m pytest -m images $(ARGS)

clean:
	rm -rf $(VENV) demo-volume demo.png bench-results

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.predictor: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[predictor]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/.predictor
