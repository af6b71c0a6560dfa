# Everything a person runs. `make demo` and `make test` set up all they need in .venv, once:
# Python 3.11 or 3.12 with pip and venv is enough, and no network is used after the first call.
#
#   make demo   PYTHON=python3.12            choose the interpreter (of a new .venv)
#   make test   ARGS="-k joiner -x"          pytest's options
#   make test   FRESHET_REQUIRE=data         fail, not skip, where the real logs are missing
#   make lock   ARGS=--upgrade               newest versions that pyproject.toml allows

VENV ?= .venv
PYTHON ?=
ARGS ?=

bin := $(VENV)/bin
ready := $(VENV)/.ready
uv := $(bin)/uv
lock := uv pip compile --quiet --python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-annotate --no-header
# Two workers, whole files each: a file's fixtures and compiled kernels stay in one process.
workers := -n 2 --dist loadfile

# Packages of hundreds of megabytes come over slow lines too; a mirror told to pip is uv's as well.
export UV_HTTP_TIMEOUT ?= 300
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DELETE_ON_ERROR:
.PHONY: demo test lint format bench bench-quick setup lock clean help

help:
	@echo "make demo | test | lint | format | bench | bench-quick | lock | clean"

demo: $(ready)
	@$(bin)/freshet demo $(ARGS)

test: $(ready)
	@$(bin)/python -m pytest $(workers) $(ARGS)

lint: $(ready)
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy

format: $(ready)
	@$(bin)/ruff check --fix .
	@$(bin)/ruff format .

bench-quick: $(ready)
	@PYTHONPATH=. $(bin)/python benchmarks/run.py --quick --out $(or $(TMPDIR),/tmp)/freshet-bench-quick.md $(ARGS)

# The peers need another torch than the project: an environment of their own.
bench: $(uv)
	@test -x .venv-bench/bin/python || $(bin)/python -m venv .venv-bench
	@$(uv) pip sync --quiet --python .venv-bench/bin/python --require-hashes requirements/bench.txt
	@$(uv) pip install --quiet --python .venv-bench/bin/python --no-deps --no-build-isolation --editable .
	@PYTHONPATH=. .venv-bench/bin/python benchmarks/run.py $(ARGS)

setup: $(ready)
	@:

# The versions that everybody gets. What is locked stays unless ARGS=--upgrade (or --upgrade-package NAME).
lock: $(uv)
	@$(bin)/$(lock) pyproject.toml --extra dev --extra kafka --output-file requirements/dev.txt $(ARGS) >/dev/null
	@$(bin)/$(lock) pyproject.toml --extra dev --extra kafka --extra bench --output-file requirements/bench.txt >/dev/null
	@$(bin)/$(lock) pyproject.toml --extra kafka --constraint requirements/dev.txt --output-file requirements/run.txt >/dev/null
	@echo uv | $(bin)/$(lock) - --constraint requirements/dev.txt --output-file requirements/uv.txt >/dev/null
	@git --no-pager diff --stat -- requirements

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find negative_queues learners stream_app tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# 1. An interpreter that really runs: a name on the PATH may be a shim of a version that is not installed.
$(bin)/python:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3); do \
	  "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || continue; \
	  echo "freshet: $(VENV) with $$("$$python" --version)"; \
	  exec "$$python" -m venv --clear $(VENV); \
	done; \
	echo "freshet needs Python 3.11 or 3.12 with venv and pip; tried: $(or $(PYTHON),python3.11 python3.12 python3)." >&2; \
	echo "Install one (Debian, Ubuntu: apt-get install python3-venv), or name it: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.12" >&2; \
	exit 1

# 2. uv, by pip, at a locked version and checked against its hashes.
$(uv): requirements/uv.txt | $(bin)/python
	@$(bin)/python -m pip --version >/dev/null 2>&1 || $(bin)/python -m ensurepip >/dev/null  # a .venv that uv made
	@$(bin)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $(uv)

# 3. What the lock names and nothing else, then the project itself, editable. uv's list of 70 packages is for terminals.
$(ready): requirements/dev.txt pyproject.toml $(uv)
	@echo "freshet: installing the locked packages (torch brings CUDA: 6 GB on disk, downloaded once)"
	@if [ -t 2 ]; then quiet=; else quiet=--quiet; fi; \
	  $(uv) pip sync $$quiet --compile-bytecode --python $(bin)/python --require-hashes requirements/dev.txt && \
	  $(uv) pip install $$quiet --python $(bin)/python --no-deps --no-build-isolation --editable .
	@touch $(ready)
