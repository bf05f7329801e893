# make demo   a picture, from nothing: install, download to a local volume, serve, ask      make test   every test
# make serve MODEL_ID=org/name ROOT=DIR    make download MODEL_ID=org/name ROOT=DIR         make lint   ruff, mypy, hadolint

PYTHON   ?= python3
VENV     ?= .venv
ROOT     ?= demo-volume
MODEL_ID ?= examples/shapes
BIN      := $(VENV)/bin
# The embedded model comes from this checkout, every other from the Hub.
SOURCE   := $(if $(filter examples/shapes,$(MODEL_ID)),--source examples/shapes/model)

.PHONY: demo serve download test lint images-test clean

demo: $(VENV)/.predictor
	$(BIN)/python examples/demo.py --root $(ROOT) --out demo.png

serve: $(VENV)/.predictor
	$(BIN)/python -m predictor --model-id $(MODEL_ID) --root $(ROOT) $(ARGS)

download: $(VENV)/.predictor
	mkdir -p $(ROOT)
	$(BIN)/python -m downloader --model-id $(MODEL_ID) --root $(ROOT) $(SOURCE) $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile Dockerfile.downloader

# Builds and runs both container images with buildah; needs root and the base image named in the Dockerfiles.
images-test: $(VENV)/.test
	$(BIN)/python -m pytest -m images $(ARGS)

clean:
	rm -rf $(VENV) demo-volume demo.png

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.predictor: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[predictor]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/.predictor
