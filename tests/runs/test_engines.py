"""The examples of Spark and Daft: on this machine, their rows equal those of one process to the bit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.world import draw_scene

pa = pytest.importorskip("pyarrow")

from pyarrow import parquet  # noqa: E402

from minigdino.runs.batches import DetectBatch  # noqa: E402
from minigdino.runs.table import schema  # noqa: E402

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent.parent
TEXT = "a star. a circle. a blue square."
ENGINES = {"daft": ("on_daft.py", "--processes", "2"), "pyspark": ("on_spark.py", "--partitions", "3")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a manifest of drawn pictures, and of a file that is none."""
    folder = tmp_path_factory.mktemp("engines")
    for number in range(24):
        Image.fromarray(draw_scene(np.random.default_rng(number)).image).save(folder / f"{number}.png")
    (folder / "5.png").write_bytes(b"no picture")
    uris = [str(folder / f"{number}.png") for number in range(24)]
    parquet.write_table(pa.table({"id": [-7 * number for number in range(24)], "uri": uris}), folder / "images.parquet")
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    """The rows of the bare class, sorted by id."""
    found = DetectBatch(TEXT, model="shapes")(parquet.read_table(folder / "images.parquet"))
    assert sum(map(len, filter(None, found["scores"].to_pylist()))) > 24
    assert [error is None for error in found["error"].to_pylist()].count(False) == 1
    return found.sort_by("id")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_example_of_an_engine_gives_the_same_rows(engine, folder, expected, needed):
    if engine == "pyspark":  # half a gigabyte, in no extra
        pytest.importorskip("pyspark")
        if not shutil.which("java"):
            pytest.skip("Spark needs Java")
    else:
        needed(engine)
    script, *options = ENGINES[engine]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable,
                   "SPARK_LOCAL_IP": "127.0.0.1", "DO_NOT_TRACK": "true"}
    done = subprocess.run([sys.executable, ROOT / "examples" / script, folder / "images.parquet", TEXT, engine,
                           "--model", "shapes", *options], cwd=folder, env=environment, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    files = [path for path in (folder / engine).glob("*.parquet") if parquet.read_metadata(path).num_rows]
    found = pa.concat_tables([parquet.read_table(path) for path in files]).cast(schema()).sort_by("id")
    assert found.select(schema().names).to_pylist() == expected.to_pylist()
    assert found["boxes"].type == expected["boxes"].type
