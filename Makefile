# Two commands on a fresh machine: `make quickstart` and `make test`. Python >= 3.11 is all they need.
PYTHON ?= python3
BIN := .venv/bin
TEST_ENV := RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1

.PHONY: venv quickstart test lint bench clean-venv

venv: .venv/.installed

# exactly what the lock names, checked by hash; then the project itself, built with what is there
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, this is " + sys.version.split()[0] + "; set PYTHON=") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

quickstart: venv
	$(BIN)/yw-ray quickstart

test: venv
	$(TEST_ENV) $(BIN)/pytest -q --durations=10

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy yw_ray experiments

bench: venv
	set -e; for program in benchmarks/b[0-9]*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$program; done

clean-venv:
	rm -rf .venv
