# make demo: the main job on a real photograph, from nothing to pictures.   make test: lint, types and all tests.
# The first run makes an environment in .venv; later runs reuse it until pyproject.toml or the constraints change.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test lint stubs breaking agreement bench constraints clean

demo: $(INSTALLED)
	$(BIN)/python docs/demo.py

test: $(INSTALLED) lint
	$(BIN)/pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint proto

# Writes the stubs again after a change of the contract, or of the other protocol's messages.
stubs: $(INSTALLED)
	$(BIN)/python proto/generate.py

# Whether the contract broke since a release: make breaking RELEASE=v0.1.0
breaking: $(INSTALLED)
	$(BIN)/buf breaking proto --against '.git#tag=$(RELEASE),subdir=proto'

# Every Conv2D of several keras.applications models against Keras: about ten minutes.
agreement: $(INSTALLED)
	$(BIN)/python tests/agreement.py

# The service beside other servers: make bench PEERS=path/to/the/kit [BENCH="--quick hand_raw"]. Up to an hour.
bench: $(INSTALLED)
	$(BIN)/python -m tests.bench.peers --kit "$(PEERS)" $(BENCH)

$(INSTALLED): pyproject.toml .ci/constraints.txt
	@echo "== setting up .venv (once; a few minutes) =="
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c .ci/constraints.txt -e '.[server,plot,import,top,tracing,dev]'
	@touch $@

# Writes the versions that CI installs anew, after a change of the dependencies in pyproject.toml.
constraints:
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/pip install --disable-pip-version-check -q '.[server,plot,import,top,tracing,dev]'
	.venv-constraints/bin/pip freeze --exclude convserve > .ci/constraints.txt
	rm -rf .venv-constraints

clean:
	rm -rf .venv demo-output dist
