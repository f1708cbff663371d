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

.PHONY: run test lint bench kaggle kaggle-check push kaggle-status kaggle-output kaggle-submit clean

run: .venv/installed $(WEIGHTS)/manifest.json  ## the notebook on the demo competition, or on DATA=FOLDER
	$(if $(filter $(DEMO),$(DATA)),$(BIN)/siimcovid synthetic $(DATA) --seed $(SEED))
	@mkdir -p $(RUN)
	$(BIN)/papermill notebooks/siim_covid19.ipynb $(RUN)/siim_covid19.ipynb -k python3 --log-output --no-progress-bar \
	  -p COMPETITION_DIR '$(DATA)' -p WEIGHTS_DIR $(WEIGHTS) -p OUTPUT_DIR '$(RUN)' -p PRESET small -p MODE finetune
	@$(BIN)/siimcovid scoreboard '$(RUN)'

$(WEIGHTS)/manifest.json: .venv/installed
	$(BIN)/siimcovid weights import efficientnet_lite0 --out $(WEIGHTS)

test: .venv/installed  ## all tests
	$(BIN)/python -m pytest

bench: .venv/installed  ## speed beside the plain way of doing it
	@mkdir -p runs
	TQDM_DISABLE=1 $(BIN)/siimcovid bench --out runs/bench.json

# which kernel: SESSION=n of a longer training, SUBMIT=1 after it, SMOKE=1 for a look at the machine
KERNEL := $(or $(SESSION),$(if $(SUBMIT),submit),$(if $(SMOKE),smoke))
THIS_KERNEL := $(if $(KERNEL),--kernel $(KERNEL))

kaggle: .venv/installed  ## the datasets and a kernel for Kaggle: OWNER=name once, WEIGHTS=FOLDER, PRESET, SESSION=n or SMOKE=1
	$(BIN)/siimcovid kaggle build $(if $(OWNER),--owner '$(OWNER)') $(if $(filter file,$(origin WEIGHTS)),,--weights '$(WEIGHTS)') \
	  $(if $(PRESET),--preset $(PRESET)) $(if $(SESSION),--session $(SESSION)) $(if $(SESSIONS),--sessions $(SESSIONS)) $(if $(SMOKE),--smoke)

kaggle-check: .venv/installed  ## execute them as Kaggle would: IMAGE=2026, 2025 or here, GPUS=2 for two processes
	$(BIN)/siimcovid kaggle check $(if $(IMAGE),--image $(IMAGE)) $(if $(GPUS),--gpus $(GPUS))

push: .venv/installed  ## upload them with Kaggle's own client; SESSION=n, SUBMIT=1 or SMOKE=1 as built
	$(BIN)/siimcovid kaggle push $(THIS_KERNEL)

kaggle-status: .venv/installed  ## how far the pushed kernel's run is
	$(BIN)/siimcovid kaggle status $(THIS_KERNEL)

kaggle-output: .venv/installed  ## download what the run left into runs/kaggle/
	$(BIN)/siimcovid kaggle output $(THIS_KERNEL)

kaggle-submit: .venv/installed  ## submit the finished run to the competition
	$(BIN)/siimcovid kaggle submit $(THIS_KERNEL)

lint: .venv/installed  ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove what was made, the virtual environment included
	rm -rf .venv runs

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c requirements.lock -e '.[demo,test,web]'
	@touch $@
