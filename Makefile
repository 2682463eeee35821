# Set-up, demonstration, tests. Everything lives in .venv; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test coverage check fuzz audit format lock clean

install: $(STAMP)

# uv installs in half of pip's time; where it cannot be had, pip reads the same lock.
$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || echo "no uv; going on with pip"
	if [ -x $(BIN)/uv ]; then \
	  $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock && \
	  $(BIN)/uv pip install --python $(BIN)/python --no-deps -e . ; \
	else \
	  $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock && \
	  $(BIN)/python -m pip install --disable-pip-version-check --no-deps -e . ; \
	fi
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/unmask pretrain --recipe demo --out runs/demo
	$(BIN)/unmask evaluate knn runs/demo builtin:fashion-mnist
	$(BIN)/unmask evaluate linear runs/demo builtin:fashion-mnist
	$(BIN)/unmask report runs/demo

# One thread a worker: two workers fill two cores, and small tensors gain nothing from more threads.
# Bytecode is kept even where the shell says no: each of many processes would compile the whole package anew.
test: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 $(PYTEST)

# By hand: before Python 3.12 tracing stops at every line of torch too, and the suite takes twice as long.
coverage:
	$(MAKE) test PYTEST="--cov=unmask --cov-report=term:skip-covered $(PYTEST)"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pip check

# The loaders against damaged files, with other ones every time; says how many cases each has read.
fuzz: $(STAMP)
	UNMASK_FUZZ_MINUTES=$(or $(MINUTES),10) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz

# Known weaknesses of what is in the lock. Needs the internet and a service that knows them, so CI cannot ask.
audit: $(STAMP)
	$(BIN)/uv tool run pip-audit --disable-pip --require-hashes -r requirements.lock

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Hashes and versions, no addresses.
lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --quiet -o requirements.lock

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
