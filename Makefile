# `make train` and `make check` are all a newcomer needs: each sets up what it wants first.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
VERL ?= build/verl
# What `make setup` installs: this checkout, or a wheel of it.
PACKAGE ?= -e .
CONFIG ?= configs/quickstart.yaml
# Two workers, each of which takes one file after the other: the tests of a file share what they start.
SIDE_BY_SIDE := -n 2 --dist loadfile
FAST := not (process or ray or vllm or deepspeed or verl or slow or nightly)

.PHONY: train lab check test nightly compat test-verl verl lint setup model lock parity docs clean

train: model
	$(BIN)/onpolicy train $(CONFIG)

# The paper's effect on a reasoner of a million parameters, in minutes.
lab: setup
	$(BIN)/onpolicy lab

# Lint, types, and every test that starts no engine and no other process: for each commit.
check: lint
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "$(FAST)"

# Everything, with real vLLM, DeepSpeed, Ray and verl: for each push.
test: lint compat test-verl
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

# What takes longer: the soak, and the same questions asked with many more examples.
nightly: setup
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m nightly

# What reads configs on OmegaConf 2.3 too, which verl's hydra holds on to.
compat: setup
	test -d build/omegaconf-2.3 || { $(BIN)/python -m pip install -q --no-deps --no-build-isolation --target build/omegaconf-2.3 omegaconf==2.3.1 antlr4-python3-runtime==4.9.3 || { rm -rf build/omegaconf-2.3; exit 1; }; }
	PYTHONPATH=build/omegaconf-2.3 $(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "omegaconf and not nightly" tests/config tests/run/test_malicious.py

# The plug-in for verl, on unmodified verl, in the environment that verl wants.
test-verl: verl
	$(VERL)/bin/python -m pytest $(SIDE_BY_SIDE) tests/integrations/verl

verl: $(VERL)/.complete

$(VERL)/.complete: requirements/verl-cpu.lock requirements/torch-cpu.txt requirements/build.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: $(PYTHON) was not found. Name it with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VERL) with verl: 2.2 GB, two minutes"
	test -x $(VERL)/bin/python || $(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install -q --disable-pip-version-check -r requirements/build.txt
	$(VERL)/bin/python -m pip install -q --disable-pip-version-check --retries 1 -r requirements/torch-cpu.txt
	$(VERL)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -r requirements/verl-cpu.lock
	$(VERL)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.complete

# The stamp is written last, so an interrupted set-up is taken up again.
$(VENV)/.complete: requirements/cpu.lock requirements/torch-cpu.txt requirements/build.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: $(PYTHON) was not found. Name it with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV): about 3.5 GB, five minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements/build.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --retries 1 -r requirements/torch-cpu.txt
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -r requirements/cpu.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation $(PACKAGE)
	@touch $@

model: setup
	@$(BIN)/python -c "from onpolicy.models import BUNDLED, resolve_model; print('default model:', resolve_model(BUNDLED))"

lock:
	PYTHON=$(PYTHON) scripts/lock.sh

# What the installed version computes beside published code; commit it with what changes it.
parity: setup
	$(BIN)/onpolicy parity --output docs/results/parity.json

docs: setup
	$(BIN)/onpolicy show --markdown > docs/configuration.md
	$(BIN)/python scripts/methods.py > docs/methods.md

clean:
	rm -rf $(VENV) build dist *.egg-info
