# The few verbs of the project. Each makes its own virtual environment in .venv first, once.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0
WEIGHTS := runs/imagenet
DEMO := runs/competition-$(SEED)
DATA ?= $(DEMO)
# results of the demo lie in runs/demo (runs/demo-SEED for another seed), those of your folder in runs/<its name>
RUN := runs/$(if $(filter $(DEMO),$(DATA)),demo$(if $(filter 0,$(SEED)),,-$(SEED)),$(notdir $(abspath $(DATA))))

export YOLO_OFFLINE := true
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: run test lint bench kaggle kaggle-check push clean

run: .venv/installed $(WEIGHTS)/manifest.json  ## the notebook on the demo competition, or on DATA=FOLDER; ARGS='--hours 1'
	$(if $(filter $(DEMO),$(DATA)),$(BIN)/siimcovid synthetic '$(DATA)' --seed $(SEED))
	$(BIN)/siimcovid run '$(DATA)' --weights '$(WEIGHTS)' --out '$(RUN)' $(ARGS)

$(WEIGHTS)/manifest.json: .venv/installed
	$(BIN)/siimcovid weights import efficientnet_lite0 --out $(WEIGHTS)

test: .venv/installed  ## all tests
	$(BIN)/python -m pytest

bench: .venv/installed  ## speed beside the plain way of doing it
	@mkdir -p runs
	TQDM_DISABLE=1 $(BIN)/siimcovid bench --out runs/bench.json

kaggle: .venv/installed  ## the datasets and the kernel for Kaggle: OWNER=name once, WEIGHTS=FOLDER for other weights
	$(BIN)/siimcovid kaggle build $(if $(OWNER),--owner '$(OWNER)') $(if $(filter file,$(origin WEIGHTS)),,--weights '$(WEIGHTS)')

kaggle-check: .venv/installed  ## execute them as Kaggle would
	$(BIN)/siimcovid kaggle check

push: .venv/installed  ## upload them with Kaggle's own client
	$(BIN)/siimcovid kaggle push

lint: .venv/installed  ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove what was made, the virtual environment included
	rm -rf .venv runs

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c requirements.lock -e '.[demo,test,web]'
	@touch $@
