# Two commands on a fresh machine: `make serve` and `make test`. Each makes .venv by itself when it is missing.
# The same lines for machines without make stand in CONTRIBUTING.md.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11 python,$(shell $(name) -c 'import sys; sys.version_info >= (3, 11, 5) and print("$(name)")' 2>/dev/null)))
RUN := $(VENV)/bin/python
# One more than there are cores: some proofs wait for what takes time.
WORKERS ?= $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 1) + 1)" 2>/dev/null)
PATTERN ?=
CHANGED ?=
ADDR ?= 127.0.0.1:8000
PYTEST = $(RUN) -m pytest -n $(or $(WORKERS),auto) --dist worksteal
LOCK := uv pip compile pyproject.toml --universal --generate-hashes --no-strip-extras --python-version 3.11.5 --no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet

export NO_MKDOCS_2_WARNING := 1
# Compiled once for all runs, and not beside the sources: pytest compiles the proofs in every process otherwise.
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/bytecode
unexport PYTHONDONTWRITEBYTECODE # where it is set, each test process would compile every library and every proof anew
export MYPYPATH := docs:tests:$(subst $(eval ) ,:,$(wildcard snippets/*))

.PHONY: help
help: ## list the targets
	@echo "Proven Patterns. Targets:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: serve
serve: $(VENV)/.ready ## show the site on http://127.0.0.1:8000, reloaded on every edit (ADDR=host:port)
	@$(RUN) docs/_catalog serve $(ADDR)

.PHONY: build
build: $(VENV)/.ready ## build the site into site/, strictly
	@$(RUN) -m mkdocs build --strict --site-dir site

.PHONY: test
test: $(VENV)/.ready ## prove everything (WORKERS=2, COV=1, CHANGED=1 for what no green run covers, PATTERN=category/slug)
ifneq ($(PATTERN),)
	@PYTHONPATH=docs:tests $(RUN) -m site_tools.one_pattern "$(PATTERN)"
else ifneq ($(CHANGED),)
	@files=$$($(RUN) docs/_catalog unproved) && $(PYTEST) $$files tests/harness tests/mutation tests/servers tests/site tests/twins
else
	@$(PYTEST) $(if $(COV),--cov --cov-report=term)
endif

.PHONY: check
check: $(VENV)/.ready ## lint, types, strict build and all tests: what has to pass before a merge
	@echo "ruff ..." && $(RUN) -m ruff format --check --quiet . && $(RUN) -m ruff check --quiet .
	@echo "mypy ..." && $(RUN) -m mypy --no-error-summary docs/_catalog snippets tests
	@echo "workflows ..." && $(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml \
	  && $(VENV)/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml \
	  && $(VENV)/bin/zizmor --offline --quiet .github
	@$(MAKE) build
	@HYPOTHESIS_PROFILE=long $(MAKE) test COV=1

.PHONY: format
format: $(VENV)/.ready ## put the Python files into their form, imports included
	@$(RUN) -m ruff check --fix --quiet . ; $(RUN) -m ruff format --quiet .

.PHONY: examples
examples: $(VENV)/.ready ## refresh the printed outputs (#>) on the pages, and the diagrams (PATTERN=category/slug)
	@$(RUN) docs/_catalog diagrams
	@$(RUN) -m pytest tests/site/test_examples.py --update-examples -p no:randomly -q $(if $(PATTERN),--pattern=$(PATTERN))
	@git diff --stat -- docs

.PHONY: twins
twins: $(VENV)/.ready ## write the generated sync twins from their async sources
	@PYTHONPATH=tests $(RUN) -m twins.unasync

.PHONY: bench
bench: .venv-bench/.ready ## measure against the peers and record it for the pages (PATTERN=category/slug)
	@PYTHONPATH=tests .venv-bench/bin/python -m bench.kit $(PATTERN)

.PHONY: mutate
mutate: .venv-bench/.ready ## break the modules in 60 seeded ways each and see their proofs fail (PATTERN=category/slug)
	@PYTHONPATH=tests .venv-bench/bin/python -m mutation.run $(PATTERN)

.PHONY: figures
figures: $(VENV)/.ready ## measure the site: build times, weights, search
	@PYTHONPATH=docs:tests $(RUN) -m site_tools.figures

.PHONY: lock
lock: ## recompile the locked requirements from pyproject.toml (UPGRADE=1 for the newest of everything)
	@command -v uv >/dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	@$(LOCK) $(if $(UPGRADE),--upgrade) --group patterns --group site --group test --group lint -o requirements.txt
	@$(LOCK) $(if $(UPGRADE),--upgrade) --group patterns --group test --group bench -c requirements.txt -o requirements-bench.txt
	@git diff --stat -- requirements.txt requirements-bench.txt

.PHONY: new
new: $(VENV)/.ready ## start a pattern: make new PATTERN=category/slug
	@$(RUN) docs/_catalog new "$(PATTERN)"

$(VENV)/.ready: requirements.txt
	@$(call make_venv,$(VENV),requirements.txt)

.venv-bench/.ready: requirements-bench.txt
	@$(call make_venv,.venv-bench,requirements-bench.txt)

define make_venv
test -n "$(PYTHON)" || { echo "Python 3.11.5 or newer is needed and none was found on PATH: install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
echo "Setting up $(1) with $$($(PYTHON) --version) and the locked packages of $(2) (once, about a minute) ..."
$(PYTHON) -m venv --clear $(1) || { echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(2) && touch $(1)/.ready && echo "Ready."
endef

%:
	@echo "There is no target '$@'; 'make help' lists them." >&2; exit 2
