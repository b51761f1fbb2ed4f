# SPDX-License-Identifier: MIT
#
# `make` lists what there is. ARGS="..." goes to the command behind a target.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
PEERS := $(VENV)/.peers
RELEASE := $(VENV)/.release
SOURCES := pyproject.toml $(wildcard README.md) LICENSE docs/emu.1 \
	$(shell find emu workers topologies -type f -not -path '*/__pycache__/*' 2>/dev/null)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help run test test-c test-aarch64 asan tsan fuzz lint fix bench build man wheel test-wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(INSTALLED) ## install into .venv and run `emu run $(ARGS)`: rmap designs side by side, here and on a modelled server
	@$(BIN)/emu run $(ARGS)

test: $(INSTALLED) $(TOOLS) ## all tests; ARGS="-k arena" chooses
	@$(BIN)/pytest $(ARGS)

test-c: $(INSTALLED) $(TOOLS) ## the tests in C, under all sanitizers
	@$(BIN)/pytest tests/test_c.py $(ARGS)

asan: $(INSTALLED) $(TOOLS) ## the tests in C under the address and undefined-behaviour sanitizers
	@$(BIN)/pytest tests/test_c.py -k asan $(ARGS)

tsan: $(INSTALLED) $(TOOLS) ## the tests in C under the thread sanitizer
	@$(BIN)/pytest tests/test_c.py -k tsan $(ARGS)

test-aarch64: $(INSTALLED) $(TOOLS) ## the tests in C, built for aarch64 and run by QEMU: minutes; needs a cross compiler
	@AARCH64=all $(BIN)/pytest tests/test_c.py -k on_aarch64 $(ARGS)

fuzz: $(TOOLS) ## libFuzzer on the C that reads what others wrote, SECONDS each; needs clang
	@mkdir -p build/fuzz/found
	@{ $(BIN)/cmake -S workers -B build/fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DCMAKE_C_COMPILER=clang -DEMU_SANITIZE=address -DEMU_CHECKED=ON -DEMU_WERROR=ON -DEMU_FUZZ=ON \
		&& $(BIN)/cmake --build build/fuzz; } > build/fuzz.log 2>&1 || { cat build/fuzz.log; exit 1; }
	@for each in build/fuzz/bin/fuzz_*; do echo "== $${each##*/}"; \
		mkdir -p build/fuzz/corpus/$${each##*/}; \
		EMU_DESIGNS=build/fuzz/designs $$each -max_total_time=$(SECONDS) -max_len=4096 -timeout=20 -rss_limit_mb=2048 \
		-print_final_stats=1 -artifact_prefix=build/fuzz/found/ $(ARGS) build/fuzz/corpus/$${each##*/} \
		2> build/fuzz/$${each##*/}.log || { tail -60 build/fuzz/$${each##*/}.log; exit 1; }; \
		grep -E "number_of_executed_units|DONE" build/fuzz/$${each##*/}.log; done

lint: $(INSTALLED) $(TOOLS) ## ruff (lint and format) and mypy --strict
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

fix: $(TOOLS) ## what ruff can put right by itself
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(TOOLS) $(PEERS) ## what locks, trees, histograms and the virtual machine cost here, as ratios inside one run
	@mkdir -p build
	@{ $(BIN)/cmake -S workers -B build/bench -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DEMU_BENCH=ON -DEMU_WERROR=ON && $(BIN)/cmake --build build/bench; } > build/bench.log 2>&1 \
		|| { cat build/bench.log; exit 1; }
	@$(BIN)/python tests/bench.py build/bench/bin

build: $(INSTALLED) ## install into .venv, and nothing else

man: $(INSTALLED) ## write docs/emu.1 from what the commands say of themselves
	@$(BIN)/python docs/manual.py

# The wheel is built from the sdist. Its tag names the oldest C library that has all its symbols.
wheel: $(TOOLS) $(RELEASE) ## dist/: an sdist, and a wheel for every Python from 3.11 on
	@rm -rf dist; mkdir -p build
	@{ PATH=$(abspath $(BIN)):$$PATH; $(BIN)/python -m build --outdir dist/plain . \
		&& auditwheel repair -w dist dist/plain/*.whl && mv dist/plain/*.tar.gz dist && rm -r dist/plain; } \
		> build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	@ls dist/*

test-wheel: $(INSTALLED) $(TOOLS) ## install the wheel in dist/ in an empty environment and try it without a compiler
	@WHEEL=$(firstword $(wildcard $(CURDIR)/dist/*.whl)) $(BIN)/pytest -n0 tests/test_release.py $(ARGS)

clean: ## remove .venv and all that was built
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find emu workers tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Each missing piece is one line that names Debian's package for it.
need = $(if $(shell { $(1); } >/dev/null 2>&1 && echo yes),,$(error $(2)))

$(BIN)/python:
	$(call need,command -v $(PYTHON),Python is missing: apt install python3 python3-venv python3-dev)
	$(call need,$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3$(comma) 11))',$(PYTHON) is \
	older than Python 3.11: install a newer one and say PYTHON=python3.11)
	$(call need,$(PYTHON) -c 'import venv$(comma) ensurepip',Python's venv is missing: apt install python3-venv)
	$(call need,$(PYTHON) -c 'import os$(comma) sys$(comma) sysconfig; \
	sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))',Python.h is missing: \
	apt install python3-dev)
	$(call need,echo '\#include <stdio.h>' | $(CC) -E -,a C compiler is missing: apt install build-essential)
	@echo "Setting up $(VENV); this takes about a minute."
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

comma := ,

$(INSTALLED): $(BIN)/python $(SOURCES)
	@$(PIP) install .
	@touch $@

# A group of pyproject.toml's [dependency-groups].
define install_group
	@$(BIN)/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["$(1)"]))' \
		> $(VENV)/$(1).txt
	@$(PIP) install -r $(VENV)/$(1).txt
	@touch $@
endef

$(TOOLS): $(BIN)/python pyproject.toml
	$(call install_group,dev)

$(PEERS): $(BIN)/python pyproject.toml
	$(call install_group,bench)

$(RELEASE): $(BIN)/python pyproject.toml
	$(call install_group,release)
