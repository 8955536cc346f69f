# Every target first makes .venv, which takes about ten minutes once and nothing after that.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin

# A sourced ROS installation has its own rclpy, made for the system's python3. Without one, rclpy
# comes from PyPI, where its wheels are for CPython 3.11.
ifneq ($(ROS_DISTRO),)
  ROS := $(shell python3 -c 'import rclpy' 2>/dev/null && echo $(ROS_DISTRO))
endif
ifneq ($(ROS),)
  PYTHON ?= python3
  VENV_FLAGS := --system-site-packages
  # cv_bridge is compiled for the NumPy that it came with, so that major version must stay.
  PACKAGES := --editable '.[test]' $(shell python3 -c 'import numpy; \
    print("numpy==" + numpy.__version__.split(".")[0] + ".*")')
  PYTHON_CHECK := True
else
  PYTHON ?= $(firstword $(shell command -v python3.11 python3))
  PACKAGES := --editable '.[ros,test,messages]'
  PYTHON_CHECK := sys.version_info[:2] == (3, 11)
endif
READY := $(VENV)/.ready-$(or $(ROS),wheels)

# Fast DDS loses large images with its default transports; nothing here needs another machine.
export FASTDDS_BUILTIN_TRANSPORTS ?= LARGE_DATA
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST

EMOJI_FONT := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

.PHONY: setup demo test check format bench fuzz eval-demo demo-model clean

setup: $(READY)

$(READY): setup.py setup.cfg Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not ($(PYTHON_CHECK)))' || { \
	  echo 'Without a sourced ROS installation, Python 3.11 is needed (PYTHON=... names one):' \
	    'the rclpy on PyPI is made for that version.' >&2; exit 1; }
	@rm -f $(VENV)/.ready-*
	@$(PYTHON) -m venv $(VENV_FLAGS) $(VENV) || { \
	  echo 'Python makes no virtual environment: apt install python3-venv' >&2; exit 1; }
	@$(BIN)/python -c 'import llama_cpp' 2>/dev/null || echo 'Installing. llama.cpp is compiled' \
	  'once, which takes about 7 minutes on two cores; pip keeps the result.'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PACKAGES)
	@touch $@

demo: setup
	@$(BIN)/hobot_vlm --ros-args -p feed_type:=0 -p user_prompt:="Describe the picture."

test: check
	@$(BIN)/python test/ros/messages/make.py
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --ignore test/ros
	$(BIN)/python -m pytest test/ros

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup
	@$(BIN)/python benchmarks/bench.py

# Damaged and hostile input for ten minutes; FUZZ='--seconds 60 --kind pictures' chooses, and
# FUZZ='--cases 20000 --json counts.json' runs so many.
fuzz: setup
	@$(BIN)/python tools/fuzz.py $(FUZZ)

eval-demo: setup $(EMOJI_FONT)
	@$(BIN)/python tools/demo_model/eval_demo.py

# The training needs PyTorch, which nothing else here does.
demo-model: setup $(EMOJI_FONT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tools]'
	$(BIN)/python tools/demo_model/train.py --out build/demo
	$(BIN)/python tools/demo_model/export.py build/demo/weights.pt

$(EMOJI_FONT):
	@echo 'The emoji font is missing: apt install fonts-noto-color-emoji' >&2; exit 1

clean:
	rm -rf build install log dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
