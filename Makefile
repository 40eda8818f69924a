# The commands of this project; `make` alone lists them. Needs make and Python 3.11, 3.12 or 3.13, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Made last, so that a set-up that broke off is begun again, and one that is complete is not.
INSTALLED := $(VENV)/.installed

STUBS := fedstream/v1
PROTOS := $(sort $(wildcard protos/fedstream/v1/*.proto))
# gRPC code only for files with a service: the plugin would write an empty module for each of the others.
SERVICES = $(shell grep -l '^service ' /dev/null $(PROTOS))
# The contract as last released: what `buf breaking` compares with. A file of the checkout and not a branch or tag of it,
# so that the answer is the same in a fresh, shallow or unpacked copy without network, and on the main branch itself,
# where a comparison with main could never fail.
RELEASED := protos/released.binpb

# Three workers on the two cores that CI has, since tests with several processes wait as well as work. A file stays on
# one worker, so that what its tests share is built once. In the order of tests/conftest.py: xdist's own puts files with
# few tests last, and those are the ones that take minutes.
PYTEST := $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

WHEELHOUSE = $(or $(OUT),dist/wheelhouse)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run-server run-client wheelhouse demo test faults fuzz bench check check-style check-types \
        check-imports check-protos check-stubs format protos protos-release clean

##@ Start here

help: ## List these commands.
	@awk '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
	    /^[a-z-]+:.* ## / { name = text = $$0; sub(/:.*/, "", name); sub(/.* ## /, "", text); \
	                        printf "  make %-14s  %s\n", name, text } \
	    /^#: / { printf "         %s\n", substr($$0, 4) }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv and install the project and its tools in it; the other commands do so by themselves.
#: PYTHON=python3.12       the Python to make it with: 3.11, 3.12 or 3.13 (default: python3)

demo: $(INSTALLED) ## Run a whole federation on this machine, each site a process of its own, to its report.
#: DATA=DIR                labelled images in DIR/train/<class> and DIR/val/<class> (default: a generated phantom)
#: BACKBONE_WEIGHTS=FILE   ImageNet weights of the backbone, instead of a download
#: CLIENTS=4 ROUNDS=10     how many sites and how many rounds
#: DIVISION=WAY SEED=0     how the images are divided among the sites, and the seed of all that is drawn at random
#: OUT=runs/demo           the folder for the report and the models
#: ARGS='--help'           any options of `fedserver demo`
	@$(BIN)/fedserver demo $(call option,--data,DATA) $(call option,--backbone-weights,BACKBONE_WEIGHTS) \
	    $(call option,--clients,CLIENTS) $(call option,--rounds,ROUNDS) $(call option,--seed,SEED) \
	    $(call option,--division,DIVISION) $(call option,--out,OUT) $(ARGS)

# An option for each variable that was given, so that every default has one home: the command itself.
option = $(if $($(2)),$(1) '$($(2))')

##@ Run a federation

# Where `fedserver init` was told where to listen, the server listens there.
AS_INITIALISED = $(if $(findstring --state,$(ARGS))$(findstring --config,$(ARGS)),,$(wildcard runs/server/state/addresses.json))

run-server: $(INSTALLED) ## Start a server that waits for clients, and print the command with which one is invited.
#: ARGS='--rounds 20'      any options of `fedserver run`
	$(BIN)/fedserver run $(if $(AS_INITIALISED),,--listen 0.0.0.0:8443) $(ARGS)

run-client: $(INSTALLED) ## Start a client beside its data.
#: ARGS='--data DIR'       any options of `fedclient run`; `fedclient join` comes first
	$(BIN)/fedclient run $(ARGS)

wheelhouse: $(INSTALLED) ## Collect all wheels for sites without internet, of this platform and this Python.
#: OUT=dist/wheelhouse     the folder to carry to the site, some 650 MB; a README.txt in it says how to install
	rm -f '$(WHEELHOUSE)'/fedstream-*.whl
	$(BIN)/python -m pip wheel --quiet --wheel-dir '$(WHEELHOUSE)' .
	@$(BIN)/python -c 'import sys, sysconfig; print("For Python %d.%d on %s, in this folder: python%d.%d -m venv" \
	    " /opt/fedstream && /opt/fedstream/bin/pip install --no-index --find-links . fedstream" \
	    % (*sys.version_info[:2], sysconfig.get_platform(), *sys.version_info[:2]))' \
	    > '$(WHEELHOUSE)/README.txt'
	@cat '$(WHEELHOUSE)/README.txt'

##@ Change the code

test: $(INSTALLED) ## Run the tests.
#: ARGS='-k upload'        any options of pytest
	$(PYTEST) $(ARGS)

faults: $(INSTALLED) ## Break things on purpose (kill, cut, part, lose power) and print what survived, in about ten minutes.
#: ONLY='kill_server'      one or several of the lines that docs/reliability.md names (default: all)
#: COUNT=300 SEED=0        how much each line does, in its own unit, and the seed of all that is drawn at random
#: ARGS='--full'           as much as docs/reliability.md shows, in some hours
	$(BIN)/python -m tests.faults $(call option,--count,COUNT) $(call option,--seed,SEED) $(ARGS) $(ONLY)

fuzz: $(INSTALLED) ## Feed every reader of what comes from the network with inputs that no sound peer sends.
#: ONLY='put_manifest'     one or several of the readers that `python -m tests.fuzz --help` lists (default: all)
#: COUNT=2000000 SEED=0    inputs in all, and the seed
	$(BIN)/python -m tests.fuzz $(call option,--count,COUNT) $(call option,--seed,SEED) $(ONLY)

bench: $(INSTALLED) ## Measure whole rounds against bare sockets and files, with this machine's figures in a table.
#: ONLY='rounds'           one or several of the parts that ARGS='--help' lists (default: all)
#: ARGS='--sizes 32x100'   any options of `python -m benchmarks`
	$(BIN)/python -m benchmarks $(ONLY) $(ARGS)

# In this order: what is quickest to say no comes first, and the last line is the summary of the tests.
check: check-style check-types check-imports check-protos check-stubs ## Everything that CI asks for, tests included.
	$(PYTEST)

format: $(INSTALLED) ## Put code and .proto files into the form that `make check` asks for.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/buf format -w

protos: $(INSTALLED) ## Generate the Python stubs from protos/.
	@new=$$(mktemp -d) && trap 'rm -rf "$$new"' EXIT && $(call generate,$$new) && \
	    rm -f $(STUBS)/*_pb2*.py $(STUBS)/*_pb2*.pyi && cp "$$new"/$(STUBS)/* $(STUBS)/

protos-release: $(INSTALLED) ## At a release: make the contract as it is now the one that later changes may not break.
	test ! -e $(RELEASED) || $(BIN)/buf breaking --against $(RELEASED)
	$(BIN)/buf build --exclude-source-info -o $(RELEASED)

clean: ## Remove caches and built packages; .venv, and what federations left in runs/, stay.
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The parts of `make check`.

check-style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-types: $(INSTALLED)
	$(BIN)/mypy

check-imports: $(INSTALLED)
	$(BIN)/lint-imports --no-logo

check-protos: $(INSTALLED)
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against $(RELEASED)

check-stubs: $(INSTALLED)
	@new=$$(mktemp -d) && trap 'rm -rf "$$new"' EXIT && $(call generate,$$new) && \
	    { diff -r -u --exclude=__init__.py --exclude=__pycache__ $(STUBS) "$$new"/$(STUBS) || \
	    { echo 'The stubs in $(STUBS) are not those of protos/: run `make protos` and commit what it writes.'; exit 1; }; }

# Stubs with types, into the folder $(1). The same .proto files and pinned tools give the same bytes on every machine.
define generate
PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc --proto_path=protos \
    --python_out="$(1)" --mypy_out=quiet:"$(1)" $(PROTOS) && \
PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc --proto_path=protos \
    --grpc_python_out="$(1)" --mypy_grpc_out=quiet:"$(1)" $(SERVICES)
endef

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "fedstream needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)."; \
	    echo "Name one that is: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
