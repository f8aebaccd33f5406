# make demo and make test are all a fresh machine needs: each makes its own virtual environment and builds the kernels.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = pyproject.toml setup.py $(wildcard _ext/*.pyx _ext/*.pxd)

.PHONY: build demo test test-browser docs lint parity published golden bench gpu-check gpu benchmarks train-shapes evaluate-shapes clean

build: $(VENV)/built

# The packages of an extra, without building minigdino once more.
extra = $(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project'] \
	['optional-dependencies']['$(1)'], sep='\n')" | $(BIN)/python -m pip install --quiet --requirement /dev/stdin

$(VENV)/built: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/parity: $(VENV)/built
	$(call extra,parity)
	touch $@

demo: build  ## find shapes in a drawn scene with the embedded checkpoint; writes demo.png
	$(BIN)/minigdino detect docs/images/scene.jpg $(DEMO_TEXT) --model shapes --threshold 0.4 --out demo.png

DEMO_TEXT = "a purple star. a green heart. an orange ring."

test: build  ## the plain suite: no PyTorch, no network
	$(BIN)/python -m pytest --ignore tests/parity

test-browser: $(VENV)/browser  ## the page of minigdino explain in a headless Chromium, which must be there
	MINIGDINO_BROWSER=required $(BIN)/python -m pytest tests/browser

$(VENV)/browser: $(VENV)/built
	$(call extra,browser)
	touch $@

lint: build
	$(BIN)/ruff check .

parity: $(VENV)/parity  ## every stage against transformers on PyTorch (CPU)
	$(BIN)/python -m pytest tests/parity

published: $(VENV)/parity  ## the five published geometries at full width against transformers; needs 20 GB
	$(BIN)/python tests/parity/published.py

golden: $(VENV)/parity  ## write the golden files of the plain suite again
	$(BIN)/python tests/golden/make.py

.PHONY: docs  # else the folder of that name would be it

docs: $(VENV)/docs  ## the guide as a site, in build/docs: open build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(VENV)/docs: $(VENV)/built
	$(call extra,docs)
	touch $@

bench: build  ## where the seconds of the tiny model go at 800 x 1066, stage by stage
	$(BIN)/minigdino bench

benchmarks: $(VENV)/benchmarks  ## beside transformers, ONNX Runtime and OpenVINO: seconds, memory, start, growth
	$(BIN)/python -m benchmarks.loops
	$(BIN)/python -m benchmarks

gpu-check: $(VENV)/gpu-check  ## the GPU's path without a GPU: CuPy's own names, NVRTC's own output
	$(BIN)/python -m pytest tests/test_fake_gpu.py tests/test_cuda.py tests/test_device.py

gpu: $(VENV)/gpu  ## on a machine with a GPU: every op and whole models there beside NumPy, then the benchmark
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

evaluate-shapes: $(VENV)/parity  ## every figure of the embedded checkpoint's model card, and the card
	mkdir -p training/runs
	$(BIN)/python -m training.evaluate minigdino/models/shapes --json training/runs/figures.json
	$(BIN)/python -m training.card training/runs/figures.json minigdino/models/shapes

clean:
	rm -rf $(VENV) build *.egg-info _ext/*.c _ext/*.so _ext/avx*/*.so demo.png
