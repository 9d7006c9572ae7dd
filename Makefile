# SPDX-License-Identifier: GPL-2.0-or-later
# Everything runs in .venv, which the first target sets up: Python >= 3.11 with venv and pip is all it needs.
PYTHON ?= python3
JOBS ?= auto
ARGS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help run test lint bench docs mutate qemu

help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 12

run: .venv/ready ## the main job: 4 mock ConnectX-7 VFs over 6 channels, judged (ARGS="--vfs 2 ...")
	$(BIN)/vfmig run $(ARGS)

test: .venv/ready ## all tests, in parallel
	$(BIN)/pytest -n $(JOBS) $(ARGS)

lint: .venv/ready ## style, types, direction of dependencies, generated docs up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m docs.generate --check

bench: .venv/ready ## throughput of a migration and speed of the judge, as ratios
	$(BIN)/vfmig bench throughput
	$(BIN)/vfmig bench check

docs: .venv/ready ## write docs/catalogue.md and docs/wire.md from the code
	$(BIN)/python -m docs.generate

mutate: .venv/ready ## which small faults no test would notice (ARGS="--sample 40 verifier.invariants.caps"); hours
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[mutation]'
	nice $(BIN)/python -m tests.mutation $(ARGS)

qemu: ## a second, newer QEMU in .qemu, which the interop tests need (300 MB)
	.ci/qemu .qemu

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vfmig needs Python 3.11 or newer; say which with: make PYTHON=python3.x ..." >&2; exit 4; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 4; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
