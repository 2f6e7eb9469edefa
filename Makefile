export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= python3
unexport PYTHONDONTWRITEBYTECODE  # tests and servers would be compiled anew by each process
# Where tests put their stores: into memory, where there are two gigabytes of it to spare.
SCRATCH := $(shell [ "$$(df -k --output=avail /dev/shm 2>/dev/null | tail -1)" -gt 2000000 ] \
	2>/dev/null && echo /dev/shm || echo $${TMPDIR:-/tmp})

.PHONY: run check check-format check-types check-imports check-schema collect test test-all clients schema released docs soak conformance bench gate webui clean

run: .venv/installed  ## a server with a demo account, on this machine alone
	@merganser serve --demo

check: check-format check-types check-imports check-schema  ## format, lint, types, import layers, printed schema and its descriptions; no tests

check-format: .venv/ready
	ruff format --check . && ruff check .

check-types: .venv/ready
	mypy

check-imports: .venv/ready
	ty check && lint-imports

check-schema: .venv/ready
	python -m merganser schema | diff - schema.graphql
	python -m tests.support.schema.description_rules

collect: .venv/ready  ## import all test modules once, so that not every test process compiles them
	pytest --collect-only -qq >/dev/null

test: .venv/ready  ## a sample on SQLite and PostgreSQL, end to end, in five minutes; with CI=1 what a change must pass
	@TMPDIR=$(SCRATCH) PYTEST_DEBUG_TEMPROOT=$(SCRATCH) STORES=sqlite,postgres pytest -n 4 --dist loadfile --no-loadscope-reorder

test-all: .venv/ready  ## all tests on both stores, with their long forms
	@ALL_TESTS=1 TMPDIR=$(SCRATCH) PYTEST_DEBUG_TEMPROOT=$(SCRATCH) STORES=sqlite,postgres pytest -n 4 --dist loadfile --no-loadscope-reorder

clients: examples/node_modules/.package-lock.json  ## the JavaScript clients that the tests run, from npm

soak: .venv/ready  ## the long forms: crashes under load, and no event lost; an hour or two
	python -m bench.soak
	python -m bench.fetch_soak
	python -m bench.send_soak
	python -m bench.cluster_soak
	python -m bench.cluster_soak --servers 3 --failover

bench: .venv/ready  ## figures on both stores, beside a hand-written floor and plain Strawberry
	python -m bench

gate: .venv/ready  ## fails where a request has become dearer against the floor than is kept
	python -m bench.gate

conformance: .venv/ready  ## the long forms of the protocol tests, and all cells of who may do what to whom
	LONG=1 pytest tests/http/test_graphql_endpoint.py tests/subscriptions/test_websocket_subscriptions.py tests/subscriptions/test_sse_subscriptions.py tests/targets/test_target_access.py tests/mail
	LONG=1 CI=1 STORES=sqlite,postgres pytest tests/e2e/recovery/test_clock_changes.py
	DIFFERENTIAL_CASES=10200 pytest tests/execution/test_executor_differential.py

schema: .venv/ready
	python -m merganser schema > schema.graphql

released: .venv/ready  ## at a release, once the version is set: the schema that later ones must not break
	sed -n 's/^version = "\(.*\)"/# merganser \1/p' pyproject.toml > tests/schema/released.graphql
	python -m merganser schema >> tests/schema/released.graphql

docs: .venv/ready  ## what in docs/ is made by programs
	python -m merganser settings > docs/settings.md
	PICTURES=docs pytest tests/browser -k inbox

webui: .venv/ready  ## GraphiQL's files in graph/static, from npm
	webui/build.sh

clean:
	rm -rf .venv dist webui/node_modules examples/node_modules examples/generated

examples/node_modules/.package-lock.json: examples/package-lock.json | .venv/ready
	cd examples && npm ci --ignore-scripts
	@touch $@

.venv/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Merganser needs Python 3.11 or later: install one, or say which by make PYTHON=…"; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "This Python cannot make virtual environments: install its venv module (Debian: apt install python3-venv)"; exit 1; }
	@touch $@

.venv/installed: pyproject.toml .venv/venv
	@echo "Installing, once …"
	@.venv/bin/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/ready: pyproject.toml .venv/venv
	.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[postgres,redis,nats,telemetry,dev]'
	@touch $@ .venv/installed
