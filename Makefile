# `make help` lists the targets. They run in .venv, which `make setup` creates and keeps up to date, except for those that
# need LeRobot or ManiSkill, which have separate environments.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
DEMO_TRAIN ?=
DEMO_EVAL ?=
export PYTHON PIP_ARGS DEMO_TRAIN DEMO_EVAL

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up-in
LEROBOT_VENV := .venv-lerobot
LEROBOT_STAMP := $(LEROBOT_VENV)/.set-up-in
# LeRobot 0.6 needs Python 3.12
LEROBOT_NEW_VENV := .venv-lerobot-0.6
LEROBOT_NEW_STAMP := $(LEROBOT_NEW_VENV)/.set-up-in
MANISKILL_VENV := .venv-maniskill
MANISKILL_STAMP := $(MANISKILL_VENV)/.set-up-in
# packages of envs, whose worker processes run in environments of their own
ENV_PACKAGES := metaworld gymnasium-robotics pusht
ENV_STAMPS := $(ENV_PACKAGES:%=.venv-%/.set-up-in)

# An environment that was copied from another checkout, or whose Python was removed, is never up to date.
ifneq ($(shell $(BIN)/python -c "print(open('$(STAMP)').read().strip())" 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif
ifneq ($(shell $(LEROBOT_VENV)/bin/python -c "print(open('$(LEROBOT_STAMP)').read().strip())" 2>/dev/null),$(CURDIR))
$(LEROBOT_STAMP): FORCE
endif
ifneq ($(shell cat $(LEROBOT_NEW_STAMP) 2>/dev/null),$(CURDIR))
$(LEROBOT_NEW_STAMP): FORCE
endif
ifneq ($(shell $(MANISKILL_VENV)/bin/python -c "print(open('$(MANISKILL_STAMP)').read().strip())" 2>/dev/null),$(CURDIR))
$(MANISKILL_STAMP): FORCE
endif

$(foreach stamp,$(ENV_STAMPS),$(if $(filter $(CURDIR),$(shell cat $(stamp) 2>/dev/null)),,$(eval $(stamp): FORCE)))

.PHONY: help setup setup-lerobot setup-lerobot-0.6 setup-maniskill $(ENV_PACKAGES:%=setup-%) opengl vulkan constraints demo test test-main test-fast test-lerobot test-lerobot-0.6 test-maniskill test-envs lint format typecheck bench docs wheel clean FORCE
FORCE:

help: ## list the targets
	@grep -hE '^[a-z0-9.-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do printf '  make %-17s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  PYTHON=python3.12       the Python of the environments (3.11 or newer)'
	@echo '  PIP_ARGS=...            arguments of pip, e.g. an --extra-index-url with CPU builds of torch (much smaller)'
	@echo '  PYTEST_ARGS=...         arguments of pytest, e.g. "-n 2 -k composition"'
	@echo '  DEMO_TRAIN=, DEMO_EVAL= additional flags for the two commands of the demo'

setup: $(STAMP) ## create .venv and install everything, unless it is up to date
$(STAMP): pyproject.toml constraints.txt scripts/setup.sh scripts/venv.sh scripts/opengl.py
	@scripts/setup.sh

setup-lerobot: $(LEROBOT_STAMP) ## create .venv-lerobot, with LeRobot, unless it is up to date
$(LEROBOT_STAMP): pyproject.toml plugins/lerobot_policy_residual_rl/pyproject.toml constraints-lerobot.txt scripts/setup_lerobot.sh scripts/venv.sh scripts/torchvision_operators.py
	@scripts/setup_lerobot.sh

setup-lerobot-0.6: $(LEROBOT_NEW_STAMP) ## create .venv-lerobot-0.6, with Python 3.12 and a CUDA build of torch (10 min, 6 GB)
$(LEROBOT_NEW_STAMP): pyproject.toml plugins/lerobot_policy_residual_rl/pyproject.toml constraints-lerobot-0.6.txt scripts/setup_lerobot_new.sh scripts/venv.sh
	@scripts/setup_lerobot_new.sh

setup-maniskill: $(MANISKILL_STAMP) ## create .venv-maniskill, with ManiSkill, unless it is up to date
$(MANISKILL_STAMP): pyproject.toml constraints-maniskill.txt scripts/setup_maniskill.sh scripts/venv.sh scripts/vulkan.py
	@scripts/setup_maniskill.sh

setup-metaworld: .venv-metaworld/.set-up-in ## create .venv-metaworld, for the task metaworld
.venv-metaworld/.set-up-in: PACKAGES := metaworld packaging
setup-gymnasium-robotics: .venv-gymnasium-robotics/.set-up-in ## create .venv-gymnasium-robotics, for fetch and adroit
.venv-gymnasium-robotics/.set-up-in: PACKAGES := gymnasium-robotics
setup-pusht: .venv-pusht/.set-up-in ## create .venv-pusht, for the task pusht
.venv-pusht/.set-up-in: PACKAGES := gym-pusht
$(ENV_STAMPS): .venv-%/.set-up-in: constraints-%.txt scripts/setup_envs.sh scripts/venv.sh
	@scripts/setup_envs.sh $* $(PACKAGES)

opengl: setup ## check again for an OpenGL library (for videos and cameras)
	@$(BIN)/python scripts/opengl.py

vulkan: setup-maniskill ## check again for a Vulkan driver (for ManiSkill's cameras and videos)
	@$(MANISKILL_VENV)/bin/python -W ignore scripts/vulkan.py

constraints: ## update constraints.txt to the newest versions
	@scripts/constraints.sh

demo: setup ## train a residual on the SO-101 task, compare it with its base policy, write a report and a video
	@scripts/demo.sh

test: ## lint, type check, all tests; all parts run, and a summary ends the output
	@MAKE="$(MAKE)" scripts/test.sh

test-main: setup ## the tests that need neither LeRobot nor ManiSkill nor packages of envs
	$(BIN)/python -m pytest -m "not envs" -n 2 $(PYTEST_ARGS)

test-fast: setup ## the fast tests, under two minutes in all
	$(BIN)/python -m pytest -m "not slow and not envs" -n auto --dist worksteal $(PYTEST_ARGS)

test-lerobot: setup-lerobot ## the tests that need LeRobot, in .venv-lerobot, without a network
	HF_HUB_OFFLINE=1 $(LEROBOT_VENV)/bin/python -m pytest -m lerobot

test-lerobot-0.6: setup-lerobot-0.6 ## the same tests with LeRobot 0.6, in .venv-lerobot-0.6
	HF_HUB_OFFLINE=1 $(LEROBOT_NEW_VENV)/bin/python -m pytest -m lerobot

test-maniskill: setup-maniskill ## the tests that need ManiSkill, in .venv-maniskill
	$(MANISKILL_VENV)/bin/python -m pytest -m maniskill

test-envs: setup $(ENV_PACKAGES:%=setup-%) ## the tests of the tasks metaworld, fetch, adroit and pusht
	$(BIN)/python -m pytest -m envs

lint: setup ## ruff (rules and format), the direction of imports, generated tables
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/python scripts/flags_table.py --check

format: setup ## apply the fixes and the format of ruff
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typecheck: setup ## mypy on src
	$(BIN)/mypy

bench: setup ## steps per second, compared with raw MuJoCo and Stable-Baselines3
	$(BIN)/residual-rl bench so101-paper

docs: setup ## build the documentation site into site/, with warnings as errors
	$(BIN)/python scripts/flags_table.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: setup ## build a wheel into dist/ and test it in a new environment
	$(BIN)/python scripts/check_wheel.py dist

clean: ## remove all environments, builds and caches, but not runs/
	rm -rf $(VENV) $(LEROBOT_VENV) $(LEROBOT_NEW_VENV) $(MANISKILL_VENV) $(ENV_PACKAGES:%=.venv-%) build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
