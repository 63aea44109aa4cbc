PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MNIST ?= data/mnist.npz
CUBES ?= data/cubes32.npz

.PHONY: demo test lint results clean

demo: $(VENV)/.ready  ## compose and sample the shipped models, complete a digit; pictures in runs/
	$(BIN)/python -m benchmarks.demo --mnist $(MNIST)

test: lint  ## the whole test suite
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

results: $(VENV)/.ready  ## every benchmark that needs no GPU, into benchmarks/results/ and the README (hours on two cores)
	$(BIN)/python -m benchmarks.planar.oracle
	$(BIN)/python -m benchmarks.planar.composition
	$(BIN)/python -m benchmarks.speed.overhead
	$(BIN)/python -m benchmarks.posteriors.calibration
	$(BIN)/python -m benchmarks.posteriors.models --mnist $(MNIST)
	$(BIN)/python -m benchmarks.posteriors.inverse --mnist $(MNIST)
	$(BIN)/python -m benchmarks.pictures.cubes --counts 1 2 3 4 5
	$(BIN)/python -m benchmarks.pictures.cubes --samplers ULA UHMC
	$(BIN)/python -m benchmarks.pictures.cubes --targets product --counts 3 5
	$(BIN)/python -m benchmarks.pictures.cubes --settings paper --samplers MALA HMC "weighted HMC"
	$(BIN)/python -m benchmarks.pictures.cubes --settings long --counts 5 --samplers MALA HMC "weighted HMC"
	$(BIN)/python -m benchmarks.pictures.tapestries
	$(BIN)/python -m benchmarks.pictures.mixing
	$(BIN)/python -m benchmarks.pictures.levels --mnist $(MNIST) --cubes $(CUBES)
	$(BIN)/python -m benchmarks.pictures.forms --cubes $(CUBES)
	$(BIN)/python -m benchmarks.demo --mnist $(MNIST) --record
	$(BIN)/python -m benchmarks.report

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,demo]'
	touch $@

clean:  ## remove everything except runs/, from which benchmarks resume
	rm -rf $(VENV) build *.egg-info
