export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= python3
unexport PYTHONDONTWRITEBYTECODE  # without bytecode, each process of tests and servers compiles all modules
# Folder of the databases of tests: in memory if 2 GB are free there.
SCRATCH := $(shell [ "$$(df -k --output=avail /dev/shm 2>/dev/null | tail -1)" -gt 2000000 ] \
	2>/dev/null && echo /dev/shm || echo $${TMPDIR:-/tmp})

NODE_VERSIONS := 22 24 26  # the supported releases of Node.js with long-term support
TAG_OPTION = $(if $(TAG),--tag)

.PHONY: help run check check-format check-lint check-mypy check-ty check-imports check-source check-schema check-descriptions check-reference collect test test-all test-ranges test-node lock clients image schema release dist reference docs soak conformance bench gate webui clean

help:  ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

run: .venv/installed  ## run a server with demo accounts, which only this machine can reach
	@merganser serve --demo

check: .venv/ready  ## check format, lint, types, the rules of source code, the printed schema and its descriptions
	@$(MAKE) --no-print-directory --keep-going check-format check-lint check-mypy check-ty check-imports \
		check-source check-schema check-descriptions check-reference

check-format: .venv/ready
	ruff format --check .

check-lint: .venv/ready
	ruff check .

check-mypy: .venv/ready
	mypy

check-ty: .venv/ready
	ty check

check-imports: .venv/ready
	lint-imports

check-source: .venv/ready
	pytest -q tests/source

check-schema: .venv/ready
	@python -m tests.support.reference.error_codes --check
	@python -m merganser schema | diff - schema.graphql || \
		{ echo "schema.graphql differs from the code: run make schema"; exit 1; }

check-descriptions: .venv/ready
	python -m tests.support.schema.description_rules

check-reference: .venv/ready
	python -m tests.support.reference --check

collect: .venv/ready  ## compile all test modules to bytecode once, before parallel test processes start
	pytest --collect-only -qq >/dev/null

test: .venv/ready  ## run a sample of the tests on SQLite and PostgreSQL (5 minutes); CI=1: all that a change must pass
	@TMPDIR=$(SCRATCH) PYTEST_DEBUG_TEMPROOT=$(SCRATCH) STORES=sqlite,postgres python -m tests.support.suite

test-all: .venv/ready  ## run all tests on both databases, with all cases of long tests
	@ALL_TESTS=1 TMPDIR=$(SCRATCH) PYTEST_DEBUG_TEMPROOT=$(SCRATCH) STORES=sqlite,postgres python -m tests.support.suite
	@$(MAKE) check-source
	@$(MAKE) test-ranges
	@$(MAKE) test-node

test-ranges:  ## run the sample with the newest versions that pyproject.toml allows, in a virtual environment of its own
	$(PYTHON) -m venv --clear var/ranges
	var/ranges/bin/pip install --disable-pip-version-check --editable '.[postgres,redis,nats,telemetry,dev]'
	PATH=$(CURDIR)/var/ranges/bin:$$PATH TMPDIR=$(SCRATCH) STORES=sqlite python -m tests.support.suite

test-node: clients  ## run the examples for JavaScript on each supported version of Node.js
	@for version in $(NODE_VERSIONS); do \
		package=node-$$(node --print '[process.platform, process.arch].join("-")') && \
		npm install --prefix var/node-$$version --no-save --ignore-scripts $$package@$$version && \
		NODE=$(CURDIR)/var/node-$$version/node_modules/$$package/bin/node STORES=sqlite \
			pytest tests/clients tests/oauth/test_openid_client.py || exit 1; \
	done

lock: .venv/ready  ## write requirements.lock: the newest versions that pyproject.toml allows, with hashes
	uv pip compile --quiet --upgrade --all-extras --universal --generate-hashes --no-emit-index-url --no-annotate \
		--custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clients: examples/node_modules/.package-lock.json  ## install the npm packages of examples/, and Node.js, for examples and tests

image: .venv/ready  ## build the container image and check it, with podman, docker, or as root with buildah and debootstrap
	@python -m tests.support.container_image

soak: .venv/ready  ## test for 1 to 2 hours that no event is lost in crashes under load
	python -m bench.soak
	python -m bench.fetch_soak
	python -m bench.send_soak
	python -m bench.cluster_soak
	python -m bench.cluster_soak --servers 3 --failover

bench: .venv/ready  ## measure both databases, and compare with a hand-written server and plain Strawberry
	python -m bench

gate: .venv/ready  ## fail if a request needs more CPU time than its stored ratio to the hand-written server allows
	python -m bench.gate

conformance: .venv/ready  ## run all cases of the protocol tests, access tests and executor comparison
	LONG=1 pytest tests/http/test_graphql_endpoint.py tests/http/test_graphql_request_bodies.py tests/subscriptions/test_websocket_subscriptions.py tests/subscriptions/test_sse_subscriptions.py tests/targets/test_target_access.py tests/mail
	LONG=1 CI=1 STORES=sqlite,postgres pytest tests/e2e/recovery/test_clock_changes.py
	DIFFERENTIAL_CASES=10200 pytest tests/execution/test_executor_differential.py

schema: .venv/ready  ## print the schema to schema.graphql, with the error codes of mutations from the code
	python -m tests.support.reference.error_codes
	python -m merganser schema > schema.graphql

release: .venv/ready check-schema  ## VERSION=1.2.0: commit changelog, schema and version, build dist/; TAG=1 also tags the commit
	@python -m tests.support.release release $(TAG_OPTION) $(or $(VERSION),$(error Name the version: make release VERSION=1.2.0))

dist: .venv/ready  ## build and check source distribution, wheel and SBOM of this commit in dist/
	@python -m tests.support.release dist

reference: .venv/ready  ## write docs/reference from the schema and the commands
	WRITE_EXAMPLES=1 STORES=sqlite pytest -q tests/schema/test_reference.py -k mutation_example
	python -m tests.support.reference

docs: .venv/ready  ## write docs/settings.md, and with a browser the pictures of docs
	python -m merganser settings > docs/settings.md
	PICTURES=docs pytest tests/browser -k "inbox or pictures or documentation_is_searched"

webui: .venv/ready  ## build the GraphiQL page in graph/static from webui/ and npm packages
	webui/build.sh

clean:  ## delete .venv, node_modules and generated example code; keeps var/
	rm -rf .venv dist webui/node_modules examples/node_modules examples/generated

examples/node_modules/.package-lock.json: examples/package-lock.json | .venv/ready
	cd examples && npm ci --ignore-scripts
	@touch $@

.venv/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Merganser needs Python 3.11 or later. Install it, or name its program: make run PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "This Python can't create virtual environments. Install its venv module (Debian: apt install python3-venv)."; exit 1; }
	@touch $@

.venv/installed: pyproject.toml .venv/venv
	@echo "Installing the dependencies into .venv. This takes about a minute, and is needed only once."
	@command -v uv >/dev/null || .venv/bin/pip install --disable-pip-version-check --only-binary :all: uv || \
		echo "uv can't be installed here. pip installs the dependencies instead, which takes longer."
	@if command -v uv >/dev/null; then uv pip install --python .venv/bin/python --compile-bytecode --editable .; \
		else .venv/bin/pip install --disable-pip-version-check --editable .; fi
	@touch $@
	@echo "The dependencies are installed. Starting Merganser: the first start creates the demo accounts."

.venv/ready: pyproject.toml requirements.lock .venv/venv
	@echo "Installing the dependencies for development into .venv. This takes some minutes."
	@if command -v uv >/dev/null; then \
		uv pip install --python .venv/bin/python --require-hashes -r requirements.lock; \
		else .venv/bin/pip install --disable-pip-version-check --no-compile --require-hashes -r requirements.lock; fi
	@.venv/bin/pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@ .venv/installed
