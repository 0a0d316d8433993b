# The commands of this repository; .ci/run calls the same ones.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := .venv/bin
CODE := src tests benchmarks tools

# Debian packages that the tests talk to: bubblewrap for the sandbox's walls where the wheel's copy is not
# wanted, libseccomp to compile the system call filter again and compare it with the committed one, runsc for
# the second driver, nftables and iproute2 to look at the air gap with other eyes than ours, Orthanc as a PACS,
# dcmtk to write and read DICOM with another's codecs, a real head CT from the InVesalius examples, and
# Chromium to print and look at pages.
PEERS := bubblewrap libseccomp2 runsc nftables iproute2 orthanc orthanc-dicomweb dcmtk invesalius-examples chromium

.PHONY: help demo test lint venv peers bench campaign

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

demo: venv ## set up, run the main job on real data, verify its bundle; leaves demo-out/
	$(BIN)/rapha demo --work demo-out

test: venv lint ## set up, lint, and run every test with branch coverage
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

lint: venv ## style, types, import arrows, generated documents
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	if [ -f tools/generate.py ]; then $(BIN)/python tools/generate.py --check; fi

venv: .venv/.installed ## only the set-up: .venv/bin/rapha and all that the tests need

# The stamp is touched last, so that an interrupted set-up is taken up again.
.venv/.installed: pyproject.toml constraints.txt
	[ -x $(BIN)/python ] || python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

peers: ## Debian packages of the real peers that the tests talk to (root)
	if ! dpkg --status $(PEERS) > /dev/null 2>&1; then \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $(PEERS); \
	fi

bench: venv ## each benchmark prints one JSON line
	for file in benchmarks/[a-z]*.py; do $(BIN)/python "$$file"; done

campaign: venv ## the long tests, marked `slow`, which `make test` skips
	RAPHA_CAMPAIGN=1 $(BIN)/python -m pytest -m slow
