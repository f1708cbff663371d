# The few verbs of the project. Each makes its own virtual environment in .venv first, once.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0
MINUTES ?= 10
IMAGENET := runs/imagenet
WEIGHTS := $(IMAGENET)
DEMO := runs/competition-$(SEED)
DATA ?= $(DEMO)
is_demo := $(if $(subst $(DEMO),,$(DATA)),,yes)
# a value as one word of the shell, whatever blanks and quotes it holds
quoted = '$(subst ','\'',$(1))'
# results of the demo lie in runs/demo (runs/demo-SEED for another seed), those of your folder in runs/<its name>
own_name = $(shell basename -- "$$(realpath -ms -- $(call quoted,$(DATA)))")
RUN := runs/$(if $(is_demo),demo$(if $(filter 0,$(SEED)),,-$(SEED)),$(own_name))
# one test process a core, each with one thread of the numeric libraries
PROCESSES ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest
# whole files go to a process, those with the most slow tests first (tests/conftest.py)
PARALLEL := -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

export YOLO_OFFLINE := true
export NO_ALBUMENTATIONS_UPDATE := 1

.DEFAULT_GOAL := help
.PHONY: help run test quick fuzz fresh lint bench kaggle kaggle-check push kaggle-status kaggle-output kaggle-submit \
  wheel lock clean

help:  ## this list
	@sed -n -E 's/^([a-z-]+):.*  ## (.*)/make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r verb does; do \
	  printf '%-18s %s\n' "$$verb" "$$does"; done

run: .venv/installed $(if $(filter file,$(origin WEIGHTS)),$(IMAGENET)/manifest.json)  ## the notebook on the demo competition, or on DATA=FOLDER; ARGS='--hours 1'
	$(if $(is_demo),$(BIN)/siimcovid synthetic $(DATA) --seed $(SEED))
	$(BIN)/siimcovid run $(call quoted,$(DATA)) --weights $(call quoted,$(WEIGHTS)) --out $(call quoted,$(RUN)) $(if $(is_demo),--preset demo )$(ARGS)

$(IMAGENET)/manifest.json: .venv/installed
	$(BIN)/siimcovid weights import efficientnet_lite0 --out $(IMAGENET)

test: .venv/installed  ## all tests that this machine can run, and what was left out
	$(PYTEST) $(PARALLEL)

quick: .venv/installed  ## the tests that take less than two minutes together
	$(PYTEST) $(PARALLEL) -m 'not slow and not browser and not gpu'

fuzz: .venv/installed  ## search for inputs that break the readers: MINUTES=30
	FUZZ_MINUTES=$(MINUTES) $(PYTEST) tests/fuzz

fresh:  ## install and test in a minimal Debian: SUITE=bookworm for another release; takes root and debootstrap
	scripts/fresh.sh

bench: .venv/installed  ## speed beside the plain way of doing it
	@mkdir -p runs
	TQDM_DISABLE=1 $(BIN)/siimcovid bench --out runs/bench.json

# which kernel: SESSION=n of a longer training, SUBMIT=1 after it, PRETRAIN=n before it, SMOKE=1 for a look at the machine
KERNEL := $(or $(SESSION),$(if $(SUBMIT),submit),$(if $(PRETRAIN),pre-$(PRETRAIN)),$(if $(SMOKE),smoke))
THIS_KERNEL := $(if $(KERNEL),--kernel $(KERNEL))

kaggle: .venv/installed  ## the datasets and a kernel for Kaggle: OWNER=name once, WEIGHTS=FOLDER, PRESET, SESSION=n, PRETRAIN=n or SMOKE=1
	$(BIN)/siimcovid kaggle build $(if $(OWNER),--owner $(call quoted,$(OWNER))) $(if $(filter file,$(origin WEIGHTS)),,--weights $(call quoted,$(WEIGHTS))) \
	  $(if $(PRESET),--preset $(PRESET)) $(if $(SESSION),--session $(SESSION)) $(if $(SESSIONS),--sessions $(SESSIONS)) $(if $(PRETRAIN),--pretrain $(PRETRAIN)) $(if $(SMOKE),--smoke)

kaggle-check: .venv/installed  ## execute them as Kaggle would: IMAGE=2026, 2025 or here, GPUS=2 for two processes
	$(BIN)/siimcovid kaggle check $(if $(IMAGE),--image $(IMAGE)) $(if $(GPUS),--gpus $(GPUS))

push: .venv/installed  ## upload them with Kaggle's own client; SESSION=n, SUBMIT=1, PRETRAIN=n or SMOKE=1 as built
	$(BIN)/siimcovid kaggle push $(THIS_KERNEL)

kaggle-status: .venv/installed  ## how far the pushed kernel's run is
	$(BIN)/siimcovid kaggle status $(THIS_KERNEL)

kaggle-output: .venv/installed  ## download what the run left into runs/kaggle/
	$(BIN)/siimcovid kaggle output $(THIS_KERNEL)

kaggle-submit: .venv/installed  ## submit the finished run to the competition
	$(BIN)/siimcovid kaggle submit $(THIS_KERNEL)

lint: .venv/installed  ## style, format and which folder may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

wheel: .venv/installed  ## the package as a wheel and a source archive in dist/, checked
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

lock: .venv/installed  ## bring requirements.lock up to date with pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-annotate \
	  --custom-compile-command 'make lock' pyproject.toml --output-file requirements.lock

clean:  ## remove what was made, the virtual environment included
	rm -rf .venv runs dist build

.venv/installed: pyproject.toml requirements.lock scripts/install.sh
	PYTHON=$(call quoted,$(PYTHON)) scripts/install.sh .venv demo,dicom-sr,lite,test,web --editable
	@touch $@
