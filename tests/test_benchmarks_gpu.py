"""The GPU benchmark on the fake GPU, whose clock advances by one tick per event."""

import itertools
import json
import os
import sys
import types

import fake_gpu
import numpy as np
import pytest
import tiny

import minigdino
from benchmarks import gpu as benchmark
from minigdino import detector
from minigdino.runtime.bench import STAGES

PIXELS = tiny.pixels(31, 44)
FILES = {"checkpoint": "checkpoint", "inputs": "inputs.npz", "save": "saved.npz"}


@pytest.fixture
def program(monkeypatch, tmp_path):
    """The class benchmarks.gpu.Minigdino on a fake CuPy. Writes a checkpoint and an input file."""
    gpu, tick = fake_gpu.Gpu(), itertools.count()

    class Event:
        def record(self):
            self.at = next(tick)

        def synchronize(self):
            pass

    def asarray(array):
        return gpu.send(array)

    runtime = types.SimpleNamespace(
        getDeviceProperties=lambda i: {"name": b"Fake card"},
        runtimeGetVersion=lambda: 13010,
        driverGetVersion=lambda: 13020,
    )
    cuda = types.SimpleNamespace(Event=Event, get_elapsed_time=lambda a, b: float(b.at - a.at), runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda, asarray=asarray, __version__="14.2.0"))
    find = detector.find_device
    monkeypatch.setattr(detector, "find_device", lambda device: gpu if device == "cuda" else find(device))
    monkeypatch.setenv("CUPY_TF32", "1")
    monkeypatch.setenv("MINIGDINO_KERNELS", "reference")
    tiny.model().save(tmp_path / "checkpoint")
    np.savez(tmp_path / "inputs.npz", pixels=PIXELS, ids=tiny.IDS)
    return benchmark.Minigdino(tmp_path / "checkpoint")


def test_stages_are_timed_from_start_to_end(program):
    took = benchmark.stage_milliseconds(program, PIXELS, tiny.IDS, passes=2)
    config = tiny.config()
    per_layer = {"fusion_layer", "text_enhancer_layer", "deformable_layer"}
    for function, stage in STAGES.items():
        assert took[stage] == (config.encoder_layers if function in per_layer else 1)  # one tick per call
    assert took["forward pass"] == 2 * sum(took[stage] for stage in STAGES.values()) + 1


def test_tables_are_made_from_the_measurements(program, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(benchmark.PROGRAMS, "minigdino", lambda directory: program)
    monkeypatch.setattr(benchmark, "launches", lambda *_: (907, 5))
    monkeypatch.setattr(benchmark, "rates", lambda *_: (5e13, 4e12))
    files = [f"--{name}={tmp_path / file}" for name, file in FILES.items()]
    benchmark.main(["--program", "minigdino", "--passes", "2", *files])
    found = json.loads(capsys.readouterr().out)
    assert len(found["ms"]) == 2
    with minigdino.use("reference"):
        want = tiny.model().forward(PIXELS, tiny.IDS)
    saved = np.load(tmp_path / "saved.npz")
    for place, array in enumerate((want.logits, want.boxes, want.vision, want.selection_scores)):
        np.testing.assert_array_equal(saved[f"arr_{place}"], array)
    table = benchmark.stage_table(found)
    assert "matrix product: 50.0 TFLOP/s; copy: 4000 GB/s" in table
    assert all(f"| {stage} |" in table for stage in (*STAGES.values(), "forward pass"))
    slower = {**found, "ms": [2 * ms for ms in found["ms"]], "launches": (3000, 9), "version": "5.23.0"}
    last = benchmark.program_table({"minigdino": [found] * 2, "transformers": [slower] * 2}).splitlines()[-1]
    assert "| 0.50 | 3000 | 9 |" in last


def test_rates_are_flops_and_bytes_per_second(program, monkeypatch):
    monkeypatch.setattr(benchmark, "COPIED", 4096)
    monkeypatch.setattr(fake_gpu.Array, "copy", lambda self: fake_gpu.Array(self.get()), raising=False)
    program.random = lambda *shape: np.zeros(shape, np.float32)  # a tick is a millisecond
    product, copy = benchmark.rates(program, 10)
    assert product == 2 * 10 * 256 * 2048 * 1e3
    assert copy == 2 * 4096 * 1e3


@pytest.mark.usefixtures("program")
def test_tf32_is_off():
    assert os.environ["CUPY_TF32"] == "0"


def test_help_works_without_cupy_and_torch(capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["--help"])
    assert ended.value.code == 0
    assert "time of each stage" in capsys.readouterr().out
