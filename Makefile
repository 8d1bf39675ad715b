# make demo: the main job on a real photograph, from nothing to pictures.   make test: lint, types and all tests.
# The first run makes an environment in .venv; later runs reuse it until pyproject.toml or the constraints change.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
TRITONCLIENT := .venv-tritonclient/installed
KSERVE := .venv-kserve/installed
DOCS := .venv-docs/installed
PLAY := .venv-play/installed
RELEASE_TOOLS := .venv-release/installed
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' client/convserve/_version.py)
IMAGE := (convserve/(server|server-gpu|client):|newTag: )
RELEASE := v$(VERSION)
RELEASE_PACKAGES := build twine check-wheel-contents cyclonedx-bom pip-licenses

.PHONY: demo test slow lint sync stubs breaking version release-check docs pictures play agreement kserve many-machines bench gpu matrix constraints clean

demo: $(INSTALLED)
	$(BIN)/python docs/demo.py

# Lint and types are checked beside the tests, and say what they found after them. A file's tests stay together, so that
# no module's server starts twice.
test: $(INSTALLED) $(TRITONCLIENT)
	@found=$$(mktemp); $(MAKE) --no-print-directory lint > $$found 2>&1 & lint=$$!; \
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$lint; checks=$$?; cat $$found; rm $$found; exit $$((tests | checks))

# The tests that take minutes and prove what shorter ones leave open.
slow: $(INSTALLED)
	$(BIN)/pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint proto

# Writes the blocking client's modules again after a change of the asyncio client's.
sync: $(INSTALLED)
	$(BIN)/python client/unasync.py

# Writes the stubs again after a change of the contract, or of the other protocol's messages.
stubs: $(INSTALLED)
	$(BIN)/python proto/generate.py

# Whether the contract broke since a release, by default the last one: make breaking [RELEASE=v0.2.0]
breaking: $(INSTALLED)
	$(BIN)/buf breaking proto --against proto/releases/$(RELEASE).txtpb

# A new version, wherever the project says it, with the contract as it now is: make version VERSION=0.3.0
version: $(INSTALLED)
	sed -i 's/^__version__ = .*/__version__ = "$(VERSION)"/' client/convserve/_version.py
	sed -i 's/^ARG VERSION=.*/ARG VERSION=$(VERSION)/' server/Dockerfile
	git grep -lE '$(IMAGE)[0-9]' -- . ':!CHANGELOG.md' | xargs sed -i -E 's#$(IMAGE)[0-9.]+[0-9]#\1$(VERSION)#g'
	$(BIN)/buf build proto --exclude-source-info -o proto/releases/v$(VERSION).txtpb

# What would be published: built, checked, installed, and called. Minutes, most of them for TensorFlow.
release-check: breaking $(RELEASE_TOOLS)
	.venv-release/bin/python -m tests.release

# The pages as a site in site/html, with an API reference: links and anchors are checked.
docs: $(DOCS)
	.venv-docs/bin/python docs/build_site.py

# The page of `convserve play` in a real browser, which has to be there (chromium; $CHROMIUM names another): minutes.
play: $(INSTALLED) $(PLAY)
	PYTHONPATH="$(CURDIR)/client:$(CURDIR)/server" .venv-play/bin/python -m pytest -m 'slow or not slow' tests/integration/play

# Draws the tutorial's pictures again, after a change of its page: the values are what its blocks compute.
pictures: $(INSTALLED)
	$(BIN)/python -m docs.tutorial_pictures

# Every Conv2D of several keras.applications models against Keras: about ten minutes.
agreement: $(INSTALLED)
	$(BIN)/python tests/agreement.py

# KServe's own client calls a server: half a gigabyte is installed, once.
kserve: $(INSTALLED) $(KSERVE)
	$(BIN)/python -m tests.kserve_client .venv-kserve/bin/python

# The programs of docs/many-machines.md, each engine's in an environment of its own, several gigabytes in all:
# make many-machines [ENGINES="ray dask"]
many-machines: $(INSTALLED)
	$(BIN)/python -m tests.many_machines $(ENGINES)

# The service beside other servers: make bench PEERS=path/to/the/kit [BENCH="--quick hand_raw"]. Up to an hour.
bench: $(INSTALLED)
	$(BIN)/python -m tests.bench.peers --kit "$(PEERS)" $(BENCH)

# On an NVIDIA GPU, in the environment that TensorFlow needs there: its tests, then the service beside TensorFlow and
# PyTorch. make gpu [PYTHON=python3] [GPU=--quick]
gpu:
	PYTHONPATH="$(CURDIR)/client:$(CURDIR)/server$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) -m tests.bench.gpu $(GPU)

$(INSTALLED): pyproject.toml .ci/constraints.txt
	@echo "== setting up .venv (once; a few minutes) =="
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c .ci/constraints.txt -e '.[server,plot,import,top,tracing,zarr,object-storage,dev]'
	@touch $@

# Triton's own client by itself, as its users have it: it bounds protobuf and ml_dtypes below those of .venv, and finds
# nothing of ours.
$(TRITONCLIENT): .ci/tritonclient-constraints.txt
	@echo "== setting up .venv-tritonclient (once; some seconds) =="
	$(PYTHON) -m venv .venv-tritonclient
	.venv-tritonclient/bin/pip install --disable-pip-version-check -q -c $< 'tritonclient[grpc]'
	@touch $@

# marimo and Playwright are 300 MB that only the page needs; what .venv has is seen from here.
$(PLAY): $(INSTALLED)
	@echo "== setting up .venv-play (once; a minute) =="
	$(PYTHON) -m venv .venv-play
	purelib='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(BIN)/python -c "$$purelib" > "$$(.venv-play/bin/python -c "$$purelib")/beside.pth"
	.venv-play/bin/pip install --disable-pip-version-check -q marimo==0.25.2 playwright==1.65.2
	@touch $@

$(KSERVE):
	@echo "== setting up .venv-kserve (once; some minutes) =="
	$(PYTHON) -m venv .venv-kserve
	.venv-kserve/bin/pip install --disable-pip-version-check -q kserve==0.21.0
	@touch $@

# What builds the site, by itself: nothing of ours is imported for the reference.
$(DOCS): .ci/docs-constraints.txt
	@echo "== setting up .venv-docs (once; some seconds) =="
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --disable-pip-version-check -q -c $< zensical 'mkdocstrings[python]' ruff
	@touch $@

# What builds and checks a release, by itself.
$(RELEASE_TOOLS): .ci/release-constraints.txt
	@echo "== setting up .venv-release (once; some seconds) =="
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/pip install --disable-pip-version-check -q -c $< $(RELEASE_PACKAGES)
	@touch $@

# The unit tests under each Python that there is: some minutes and gigabytes for each. make matrix [MATRIX="--all 3.12"]
matrix:
	$(PYTHON) -m tests.matrix $(MATRIX)

# Writes the versions that CI installs anew, after a change of the dependencies in pyproject.toml.
constraints:
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/pip install --disable-pip-version-check -q '.[server,plot,import,top,tracing,zarr,object-storage,dev]'
	.venv-constraints/bin/pip freeze --exclude convserve > .ci/constraints.txt
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/pip install --disable-pip-version-check -q 'tritonclient[grpc]'
	.venv-constraints/bin/pip freeze > .ci/tritonclient-constraints.txt
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/pip install --disable-pip-version-check -q zensical 'mkdocstrings[python]' ruff
	.venv-constraints/bin/pip freeze > .ci/docs-constraints.txt
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/pip install --disable-pip-version-check -q $(RELEASE_PACKAGES)
	.venv-constraints/bin/pip freeze > .ci/release-constraints.txt
	rm -rf .venv-constraints

clean:
	rm -rf .venv .venv-* demo-output dist site
