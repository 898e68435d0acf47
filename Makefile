# What one does here: `make demo`, `make test`, `make bench`. Each gets ready what it needs by itself.
.PHONY: demo test bench lint format proto lock map clean setup-demo setup-test setup-bench

PYTHON := .venv/bin/python
PROTO := src/glovebox_server/gateway/e2b/proto

demo: setup-demo  ## an agent's session, then an attack, on a server of its own
	@$(PYTHON) demo/demo.py

test: setup-test  ## every test; with CI set, a skip is a failure
	$(PYTHON) -m pytest $(ARGS)

bench: setup-bench  ## time to a ready sandbox, beside the alternatives: writes docs/performance.md
	$(PYTHON) -m bench --setup $(ARGS)

lint: setup-demo  ## style, types, and who may import whom
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PYTHON) scripts/map.py --check

format: setup-demo
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

proto: setup-demo  ## the envd messages, from their .proto files
	$(PYTHON) -m grpc_tools.protoc -I $(PROTO) --python_out=$(PROTO) --pyi_out=$(PROTO) $(PROTO)/*.proto

# Locks are for every platform and name no index: docs/decisions/0005-locks-without-urls.md.
COMPILE := $(PYTHON) -m uv pip compile --quiet --upgrade --generate-hashes --universal --no-header
lock: setup-demo  ## newest versions into the lock files
	$(COMPILE) --python-version 3.11 --group dev --group bench --output-file requirements.lock pyproject.toml
	$(COMPILE) --python-version 3.9 --output-file src/glovebox_server/images/base-requirements.lock \
	    src/glovebox_server/images/base-requirements.in
	cd tests/js && npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund

map: setup-demo  ## the map in ARCHITECTURE.md, from the modules' first lines
	$(PYTHON) scripts/map.py

clean:  ## all that was made here, .venv too
	rm -rf .venv build demo-output tests/js/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench demo scripts -name __pycache__ -type d -prune -exec rm -rf {} +

setup-demo setup-test setup-bench: setup-%:
	@scripts/setup.sh $*
