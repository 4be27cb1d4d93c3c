# Everything that a person does here. Each step is skipped when nothing has changed.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
NODE := $(CURDIR)/$(VENV)/node
NPM := PATH="$(NODE):$$PATH" $(VENV)/node/npm --prefix frontend
UI := backend/holdfast/ui/index.html
UI_SOURCES := $(shell find frontend -type f -not -path '*/node_modules/*' 2>/dev/null)
WORKERS ?= 2

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run dev test check python-tests browser-tests ui-tests bench fmt lock ui wheel clean

help: ## list what can be done
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

run: $(STAMPS)/run $(UI) ## set everything up and serve on http://127.0.0.1:8000 (ARGS="--port 8010" passes flags on)
	@exec $(BIN)/holdfast serve --data-dir ./data $(ARGS)

dev: $(STAMPS)/run $(STAMPS)/node ## the server on 8000 and a UI on 5173 that reloads itself
	@$(BIN)/holdfast serve --data-dir ./data --allowed-origins http://127.0.0.1:5173 $(ARGS) & trap "kill $$!" EXIT; $(NPM) run dev

test: check ui-tests python-tests ## all tests: lint, types, TypeScript, Python, browser

check: $(STAMPS)/dev $(STAMPS)/node ## lint and types, of Python and TypeScript
	$(BIN)/ruff format --check backend tests bench scripts
	$(BIN)/ruff check backend tests bench scripts
	PATH="$(NODE):$$PATH" frontend/node_modules/.bin/pyright
	$(NPM) run lint
	$(NPM) run typecheck

ui-tests: $(STAMPS)/node ## the tests of the TypeScript core
	$(NPM) test

python-tests: $(STAMPS)/dev $(STAMPS)/browser $(STAMPS)/sandbox $(UI) ## the Python tests, in a real browser too
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

browser-tests: $(STAMPS)/dev $(STAMPS)/browser $(UI) ## only the tests in a real browser
	$(BIN)/python -m pytest tests/browser $(ARGS)

bench: $(STAMPS)/dev ## measure; one table, each row beside its control
	$(BIN)/python -m bench $(ARGS)

fmt: $(STAMPS)/dev ## format the Python code
	$(BIN)/ruff format backend tests bench scripts
	$(BIN)/ruff check --fix backend tests bench scripts

ui: $(UI) ## build the browser UI into the package

wheel: $(STAMPS)/dev $(UI) ## build dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

lock: $(STAMPS)/dev ## resolve the newest versions into requirements/
	scripts/lock.sh

clean: ## remove what was built, but no data
	rm -rf $(VENV) dist frontend/node_modules backend/holdfast/ui

$(UI): $(STAMPS)/node $(UI_SOURCES)
	$(NPM) run build
	@touch $@

$(STAMPS)/venv:
	@scripts/venv.sh $(PYTHON) $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/run: $(STAMPS)/venv requirements/run.txt pyproject.toml
	@echo "installing what Holdfast needs"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.txt
	@$(BIN)/python scripts/link.py
	@touch $@

$(STAMPS)/dev: $(STAMPS)/run requirements/dev.txt
	@echo "installing what the tests need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

$(STAMPS)/node: $(STAMPS)/venv requirements/ui.txt frontend/package.json frontend/package-lock.json
	@echo "installing what the UI needs"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/ui.txt
	@scripts/node.sh $(BIN)/python "$(NODE)"
	@$(NPM) ci --no-audit --no-fund --loglevel error
	@touch $@

$(STAMPS)/browser: $(STAMPS)/venv
	@scripts/browser.sh
	@touch $@

$(STAMPS)/sandbox: $(STAMPS)/venv
	@scripts/sandbox.sh
	@touch $@
