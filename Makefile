# The two commands are `make demo` and `make test`; both set everything up first and can be run again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# More would let tests with processes of their own fight over the cores of a small machine.
TEST_PROCESSES ?= 2

.PHONY: setup demo study-medical curate-example test test-slow test-slurm torture lint bench docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt pip setuptools torch packaging ninja
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev,demo,wandb]'
	touch $(STAMP)

demo: setup
	$(BIN)/python demo/demo.py

# Continued pretraining on the Gene Ontology with and without replay; the report is docs/studies/medical.md.
study-medical: setup
	$(BIN)/python -m studies.medical

# Curation of five corpora and its report, docs/studies/curation.md; a few minutes on two idle cores.
curate-example: setup
	$(BIN)/python -m studies.curation

# Reports are opened in Chromium where there is one; with CPT_REQUIRE_CHROMIUM=1 in the environment it must be there.
# The tests without processes of their own; the others are `make test-slow`, and .ci/run runs all of them.
test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m 'not distributed and not e2e and not peer and not slurm'

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m '(distributed or e2e) and not slurm and not peer'

# Real jobs on a Slurm of two nodes, and two network namespaces; as root, else it fails.
test-slurm: setup
	OMP_NUM_THREADS=1 CPT_REQUIRE_SLURM=1 $(BIN)/python -m pytest -m slurm tests/cluster

# 100 times kill -9 of one rank or of all, mostly within saves; about 10 s each on two idle cores.
torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture kills=100

lint: setup
	! git grep -nE '^(<<<<<<<|>>>>>>>)' # a merge left half done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: setup
	$(BIN)/python benchmarks/linear_cross_entropy.py
	$(BIN)/python benchmarks/quotas.py
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/context_balance.py
	$(BIN)/python benchmarks/simulate.py
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/long_context.py

docs: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_docs.py

clean:
	rm -rf $(VENV) runs build
