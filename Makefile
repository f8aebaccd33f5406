# A fresh machine needs only make demo or make test: both create a virtual environment and build the kernels.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = pyproject.toml setup.py $(wildcard _ext/*.pyx _ext/*.pxd _ext/*.h)

.PHONY: build demo test test-runs test-serve test-browser docs mutants lint types parity published golden bench gpu-check gpu benchmarks train-shapes evaluate-shapes clean

build: $(VENV)/built

# Install the packages of an extra without rebuilding minigdino.
extra = $(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project'] \
	['optional-dependencies']['$(1)'], sep='\n')" | $(BIN)/python -m pip install --quiet --requirement /dev/stdin

$(VENV)/built: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -c "import sysconfig; open(sysconfig.get_path('purelib') + '/minigdino-tree.pth', 'w').write('$(CURDIR)')"
	$(BIN)/minigdino info | grep '^missing'  # compiled modules that could not be built
	touch $@

$(VENV)/parity: $(VENV)/built
	$(call extra,parity)
	touch $@

demo: build  ## detect shapes in a drawn scene with the embedded checkpoint; writes demo.png
	$(BIN)/minigdino detect docs/images/scene.jpg $(DEMO_TEXT) --model shapes --threshold 0.4 --out demo.png

DEMO_TEXT = "a purple star. a green heart. an orange ring."

test: build  ## the plain test suite: no PyTorch, no network access
	$(BIN)/python -m pytest --ignore tests/parity --ignore tests/runs --ignore tests/schema $(PYTEST_ARGS)

test-runs: $(VENV)/test-runs  ## results as Parquet in pandas, DuckDB and Polars; runs on a local Ray cluster and in Daft; S3 and GCS
	MINIGDINO_RUNS=required $(BIN)/python -m pytest tests/runs tests/test_opening.py $(PYTEST_ARGS)

$(VENV)/test-runs: $(VENV)/built
	$(call extra,test-runs)
	touch $@

test-serve: $(VENV)/test-serve  ## minigdino serve against its own description of the API, by schemathesis
	$(BIN)/python -m pytest tests/schema

$(VENV)/test-serve: $(VENV)/built
	$(call extra,test-serve)
	touch $@

test-browser: $(VENV)/browser  ## the pages of minigdino explain and serve in a headless Chromium, which must be installed
	MINIGDINO_BROWSER=required $(BIN)/python -m pytest tests/browser

$(VENV)/browser: $(VENV)/built
	$(call extra,browser)
	touch $@

mutants: build  ## plant mistakes in the network one at a time; each module's own tests must catch its mistakes
	$(BIN)/python tests/mutants.py

lint: build
	$(BIN)/ruff check .

types: $(VENV)/types  ## check the types of the package, and that they fit README and typical uses (mypy, pyright)
	$(BIN)/python tests/types/check.py

$(VENV)/types: $(VENV)/built
	$(call extra,types)
	touch $@

parity: $(VENV)/parity  ## compare every stage with transformers on PyTorch (CPU)
	$(BIN)/python -m pytest tests/parity

published: $(VENV)/parity  ## compare the five published geometries at full width with transformers; needs 20 GB of memory
	$(BIN)/python tests/parity/published.py

golden: $(VENV)/parity  ## regenerate the golden files of the plain test suite
	$(BIN)/python tests/golden/make.py

.PHONY: docs  # a folder has the same name

docs: $(VENV)/docs  ## build the guide as a web site: open build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(VENV)/docs: $(VENV)/built
	$(call extra,docs)
	touch $@

bench: build  ## time the tiny model at 800 x 1066, stage by stage
	$(BIN)/minigdino bench

benchmarks: $(VENV)/benchmarks  ## compare with transformers, ONNX Runtime, OpenVINO: time, throughput, memory, start-up, growth
	$(BIN)/python -m benchmarks.loops
	$(BIN)/python -m benchmarks

gpu-check: $(VENV)/gpu-check  ## check the GPU code without a GPU, against the names of CuPy and the output of NVRTC
	$(BIN)/python -m pytest tests/test_fake_gpu.py tests/test_cuda.py tests/test_device.py

gpu: $(VENV)/gpu  ## on a machine with a GPU: compare every op and whole models with NumPy, then run the benchmark
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m benchmarks.gpu

CUDA ?= cuda12

$(VENV)/gpu: $(VENV)/built
	$(call extra,bench)
	$(call extra,$(CUDA))
	touch $@

$(VENV)/gpu-check: $(VENV)/built
	$(call extra,gpu-check)
	touch $@

$(VENV)/benchmarks: $(VENV)/built
	$(call extra,bench)
	touch $@

train-shapes: $(VENV)/parity  ## train, export and evaluate the embedded checkpoint: about an hour on two cores
	$(BIN)/python -m training.train
	$(BIN)/python -m training.export minigdino/models/shapes
	$(MAKE) evaluate-shapes

evaluate-shapes: $(VENV)/parity $(VENV)/evaluate  ## measure the embedded checkpoint and write its model card
	mkdir -p training/runs
	$(BIN)/python -m training.evaluate minigdino/models/shapes --json training/runs/figures.json
	$(BIN)/python -m training.card training/runs/figures.json minigdino/models/shapes

$(VENV)/evaluate: $(VENV)/built
	$(call extra,evaluate)
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info _ext/*.c _ext/*.so _ext/avx*/*.so demo.png
