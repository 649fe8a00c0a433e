# make demo · make test · make test-cluster · make coverage · make bench · make lint: each sets up .venv first (minutes the first time, nothing after that).
# `make clean` leaves .venv and runs/ alone; remove them by hand to start over.

PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --prefer-binary -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
PACKAGES := sim2real adapters calibration randomization recipes
BENCHMARKS := $(filter-out benchmarks/_%,$(sort $(wildcard benchmarks/*.py)))
WORKERS ?= 2

.PHONY: demo test test-cluster coverage bench lint clean

demo: .venv/.installed
	.venv/bin/sim2real run recipes/pendulum.yaml --again

# One thread a worker: two workers with a pool of threads each would fight over the cores.
PYTEST := SIM2REAL_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	.venv/bin/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=12

test: .venv/.installed
	$(PYTEST)

# apart from `test`, because the processes of three nodes take minutes to come up
test-cluster: .venv/.installed
	$(PYTEST) -n 0 -m cluster

# apart from `test`, because tracing the branches makes the numerical tests half as long again
coverage: .venv/.installed
	$(PYTEST) --cov --cov-report=term:skip-covered

bench: .venv/.installed
	@failed=; for script in $(BENCHMARKS); do \
		echo "== $$script"; .venv/bin/python $$script || failed="$$failed $$script"; \
	done; if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

# mypy cannot follow an editable install whose folders are mapped, so it reads an installed wheel, away from the checkout.
lint: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	rm -rf .lint/site .lint/source && mkdir -p .lint/source
	cp -R setup.cfg pyproject.toml LICENSE $(wildcard README.md) $(PACKAGES) .lint/source
	$(PIP) --no-deps --target .lint/site .lint/source
	cd .lint && MYPYPATH=site ../.venv/bin/mypy --strict --config-file ../pyproject.toml -p sim2real

clean:
	rm -rf .lint build dist *.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +

# torch comes first and alone: everything else then settles for the build of it that is already there.
.venv/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
			"Name another one: make PYTHON=python3.11" >&2; exit 1; }
	@echo "Setting up .venv (takes minutes the first time)"
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) -e '.[all]'
	@touch $@
