# Each target does all of its own set-up: Python 3.11+, pip, make and git are enough.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-long lint clean

demo: $(VENV)/installed
	$(BIN)/pathfm demo --out demo

test: lint
	# a file stays with one worker, so the demo runs once, and in their order, so it does not begin last;
	# one thread a worker, so the two do not fight over the machine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-long: $(VENV)/installed
	# -rP prints what the tests counted
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -rP --show-capture=stdout -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo

# uv installs the stack in a fraction of pip's time; the marker file says that it ended well
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[test]'
	touch $@
