PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MNIST ?= data/mnist.npz
CUBES ?= data/cubes32.npz
PHOTOS ?= data/cifar32.npz

.PHONY: demo test test-fast test-long test-lowest wheel lint docs results clean

demo: $(VENV)/.ready  ## compose and sample the shipped models, complete a digit; pictures in runs/
	$(BIN)/python -m benchmarks demo --mnist $(MNIST)

test: lint  ## the test suite, in minutes
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-fast: lint  ## what takes no seconds, for daily work
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not long and not slow"

test-long: $(VENV)/.ready  ## statistical checks that `make test` leaves out
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m long

# Old releases call what newer ones of their own dependencies deprecate: these warnings are no errors here.
test-lowest: $(VENV)-lowest/.ready  ## the test suite with the oldest releases that pyproject.toml admits
	$(VENV)-lowest/bin/python -m pytest --numprocesses auto --dist worksteal \
		-W ignore::DeprecationWarning -W ignore::FutureWarning

wheel: $(VENV)/.ready  ## build the wheel, install it into an empty environment, sample and compare a kernel of one's own there
	rm -rf build/wheel && mkdir -p build/wheel/elsewhere
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/python -m pip install --quiet --constraint constraints.txt build/wheel/*.whl
	cd build/wheel/elsewhere && ../env/bin/ppl-diffusion sample "ring * bar" --chains 64 --steps 2 --out run
	test -s build/wheel/elsewhere/run/trace.nc
	cd build/wheel/elsewhere && ../env/bin/python -c "from ppl_diffusion import targets; print(targets.overview())"
	printf 'import blackjax\n\n\ndef kernel(log_density):\n    return blackjax.barker_proposal(log_density, step_size=0.3)\n' \
		> build/wheel/elsewhere/mymodule.py
	cd build/wheel/elsewhere && ../env/bin/ppl-diffusion bench mymodule:kernel --quick --out bench

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## the site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "the site is in build/site: open index.html or, to search it, $(PYTHON) -m http.server --directory build/site"

results: $(VENV)/.ready  ## every benchmark that needs no GPU, into benchmarks/results/ and the gallery (hours on two cores)
	$(BIN)/python -m benchmarks oracle
	$(BIN)/python -m benchmarks composition
	$(BIN)/python -m benchmarks work
	$(BIN)/python -m benchmarks overhead
	$(BIN)/python -m benchmarks evaluations
	$(BIN)/python -m benchmarks islands
	$(BIN)/python -m benchmarks calibration
	$(BIN)/python -m benchmarks levy
	$(BIN)/python -m benchmarks models --mnist $(MNIST)
	$(BIN)/python -m benchmarks likelihood --mnist $(MNIST)
	$(BIN)/python -m benchmarks shares
	$(BIN)/python -m benchmarks inverse --mnist $(MNIST)
	$(BIN)/python -m benchmarks cubes --counts 1 2 3 4 5
	$(BIN)/python -m benchmarks cubes --samplers ULA UHMC
	$(BIN)/python -m benchmarks cubes --targets product --counts 3 5
	$(BIN)/python -m benchmarks cubes --settings paper --samplers MALA HMC "weighted HMC"
	$(BIN)/python -m benchmarks cubes --settings long --counts 5 --samplers MALA HMC "weighted HMC"
	$(BIN)/python -m benchmarks captions --rungs 50
	$(BIN)/python -m benchmarks tapestries
	$(BIN)/python -m benchmarks verdicts
	$(BIN)/python -m benchmarks mixing
	$(BIN)/python -m benchmarks levels --mnist $(MNIST) --cubes $(CUBES)
	$(BIN)/python -m benchmarks widths --mnist $(MNIST)
	$(BIN)/python -m benchmarks forms --cubes $(CUBES)
	$(BIN)/python -m benchmarks judge --mnist $(MNIST)
	$(BIN)/python -m benchmarks classifier --mnist $(MNIST)
	$(BIN)/python -m benchmarks classifier --photographs $(PHOTOS) --chains 50 --every 4 \
		--samplers reverse ULA MALA UHMC HMC "weighted HMC"
	$(BIN)/python -m benchmarks distillation --mnist $(MNIST)
	$(BIN)/python -m benchmarks theirs --mnist $(MNIST) --each 10 --every 4
	$(BIN)/python -m benchmarks leaderboard --gradients 1000 --levels 2 --seeds 3
	$(BIN)/python -m benchmarks demo --mnist $(MNIST) --record
	$(BIN)/python -m benchmarks.report

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,demo]'
	touch $@

# Every lower bound, exactly; but torch as in constraints.txt: an old torch does not come without gigabytes for GPUs
# everywhere, so its lower bound is not tested.
$(VENV)-lowest/.ready: pyproject.toml constraints.txt .ci/lowest.py
	$(PYTHON) -m venv $(VENV)-lowest
	mkdir -p build
	$(PYTHON) .ci/lowest.py > build/lowest.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint build/lowest.txt --editable '.[test,demo]'
	touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:  ## remove everything except runs/, from which benchmarks resume
	rm -rf $(VENV) $(VENV)-lowest build *.egg-info
