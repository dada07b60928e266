# `make train` and `make check` are all a newcomer needs: each sets up what it wants first.

# The first of these that is there. Another one: make PYTHON=/path/to/python3.12
PYTHON ?= $(call first-of,python3.11 python3.12 python3.13 python3)
# verl has no release for Python 3.13, and none for macOS.
VERL_PYTHON ?= $(if $(filter Linux,$(shell uname -s)),$(call first-of,python3.11 python3.12 $(PYTHON),12))
first-of = $(shell for python in $(1); do "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $(or $(2),13)))' 2>/dev/null && { echo "$$python"; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
VERL ?= build/verl
VERIFIERS ?= build/verifiers
TRACKERS ?= build/trackers
MKDOCS ?= build/mkdocs
# What `make setup` installs: this checkout, or a wheel of it.
PACKAGE ?= -e .
CONFIG ?= configs/quickstart.yaml
# Two workers, each of which takes one file after the other: the tests of a file share what they start (tests/conftest.py).
SIDE_BY_SIDE := -n 2 --dist loadfile
FAST := not (process or ray or vllm or deepspeed or verl or slow or nightly)

# Modules are compiled once and kept, whatever the environment says: compiling them anew makes every start of a process a third longer.
export PYTHONDONTWRITEBYTECODE :=

# What every environment is made of, beside its lock.
SETUP := requirements/torch-cpu.txt requirements/torch-cpu-index.txt requirements/build.lock scripts/uv_as_pip.py pyproject.toml

# uv of the environment $(1), with pip's indexes and proxy. What has no wheel is built by the locked setuptools.
uv = DS_BUILD_OPS=0 $(1)/python scripts/uv_as_pip.py pip install --no-build-isolation

# An environment $(1) of the Python $(2) with the lock $(3) and the package $(4). pip installs what sets it up, and torch: from what pip
# is configured with, or else from PyTorch's index. The stamp is written last, so an interrupted set-up is taken up again.
define environment
	@test -x $(1)/bin/python || $(2) -m venv $(1)
	@$(1)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/build.lock
	@$(1)/bin/python -m pip install -qq --no-deps -r requirements/torch-cpu.txt 2>/dev/null \
		|| $(1)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r requirements/torch-cpu-index.txt
	@$(call uv,$(1)/bin) --no-deps --require-hashes -r $(3)
	@$(call uv,$(1)/bin) -q --no-deps $(4)
	@touch $(1)/.complete
endef

# The packages of the lock $<, in a folder of their own that lies in front of the environment's.
define in-front
	rm -rf $(@D)
	@$(call uv,$(BIN)) -q --no-deps --require-hashes --target $(@D) -r $<
	@touch $@
endef

.PHONY: train lab check test nightly compat test-verl verl test-verifiers verifiers test-trackers trackers lint setup lock parity docs site clean

train: setup
	$(BIN)/onpolicy train $(CONFIG)

# The paper's effect on a reasoner of a million parameters, in minutes.
lab: setup
	$(BIN)/onpolicy lab

# Lint, types, and every test that starts no engine and no other process: for each commit.
check: lint
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "$(FAST)"

# Everything, with real vLLM, DeepSpeed, Ray and verl: for each push.
test: lint site compat test-verl test-verifiers test-trackers
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

# What takes longer: the soak, whole runs of every kind, and the same questions asked with many more examples.
nightly: setup verl verifiers
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m nightly
	$(VERL)/bin/python -m pytest $(SIDE_BY_SIDE) -m nightly tests/integrations/verl
	PYTHONPATH=$(VERIFIERS) $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m nightly tests/integrations/verifiers

# What reads configs on OmegaConf 2.3 too, which verl's hydra holds on to.
compat: setup
	@test -d build/omegaconf-2.3 || { $(call uv,$(BIN)) --no-deps --require-hashes --target build/omegaconf-2.3 \
		omegaconf==2.3.1 antlr4-python3-runtime==4.9.3 -c requirements/verl-cpu.lock || { rm -rf build/omegaconf-2.3; exit 1; }; }
	PYTHONPATH=build/omegaconf-2.3 $(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "omegaconf and not nightly" tests/config tests/run/test_malicious.py

# The plug-in for verl, on unmodified verl, in the environment that verl wants.
test-verl: verl
	$(VERL)/bin/python -m pytest $(SIDE_BY_SIDE) tests/integrations/verl

# Environments of verifiers, in front of whose packages lie the few that it wants besides or in another version.
test-verifiers: verifiers
	PYTHONPATH=$(VERIFIERS) $(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/integrations/verifiers

verifiers: setup $(VERIFIERS)/.complete

$(VERIFIERS)/.complete: requirements/verifiers.lock
	$(in-front)

# Trackers of other projects, and Inspect: their packages lie in front of the environment's, as those of verifiers do.
test-trackers: trackers
	PYTHONPATH=$(TRACKERS) $(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/integrations/trackers

trackers: setup $(TRACKERS)/.complete

$(TRACKERS)/.complete: requirements/trackers.lock
	$(in-front)

verl: $(VERL)/.complete

$(VERL)/.complete: requirements/verl-cpu.lock $(SETUP)
	@test -n "$(VERL_PYTHON)" || { echo "verl runs on Linux with Python 3.11 or 3.12, and neither was found. Name it with: make VERL_PYTHON=/path/to/python3.12"; exit 1; }
	@echo "setting up $(VERL) with verl: 2.2 GB, about two minutes"
	$(call environment,$(VERL),$(VERL_PYTHON),requirements/verl-cpu.lock,-e .)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.complete

$(VENV)/.complete: requirements/cpu.lock $(SETUP)
	@test -n "$(call first-of,$(PYTHON))" || { echo "expected Python 3.11, 3.12 or 3.13, got $(or $(PYTHON),none of them). Name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON): 4.5 GB, one to five minutes"
	$(call environment,$(VENV),$(PYTHON),requirements/cpu.lock,$(PACKAGE))

# Resolves the locks again; `scripts/lock.sh --upgrade` takes newer releases.
lock: setup
	PYTHON=$(abspath $(BIN))/python scripts/lock.sh

# What the installed version computes beside published code; commit it with what changes it.
parity: setup
	$(BIN)/onpolicy parity --output docs/results/parity.json

docs: setup
	$(BIN)/onpolicy show --markdown > docs/configuration.md
	$(BIN)/python scripts/methods.py > docs/methods.md
	$(BIN)/python scripts/llms.py > docs/llms.txt

# The site of the docs in build/site; a link that leads nowhere, or to an anchor that is not there, is an error.
site: setup $(MKDOCS)/.complete
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(MKDOCS) $(BIN)/python -m mkdocs build --strict

$(MKDOCS)/.complete: requirements/docs.lock
	$(in-front)

clean:
	rm -rf $(VENV) build dist *.egg-info
