"""The server does what its description of the API says: schemathesis makes requests from /openapi.json.

It checks that the server never fails, that statuses, content types and contents are as described, and that the server
refuses each request that the description forbids or whose key is missing. A request that the description allows may get
422, too, so this test finds no wrong 422; the many requests with 200 are counted.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import serving
import tiny

pytestmark = pytest.mark.once

FOLDER = Path(__file__).parent
KEY = "secret"
CONFIG = f"""
[checks.positive_data_acceptance]
expected-statuses = [200, 422]  # 422 for what a schema cannot state, such as a phrase of unknown words

[checks.negative_data_rejection]
expected-statuses = [401, 413, 415, 422]  # 413 for one phrase too many, each of the largest length

[auth.openapi.bearer]
bearer = "{KEY}"
"""


def test_the_server_does_what_its_description_says(tmp_path):
    tiny.model().save(tmp_path / "tiny")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    server = serving.Server("--model", str(tmp_path / "tiny"), "--workers", "1", "--threads", "1",
                            MINIGDINO_API_KEY=KEY)
    try:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{server.port}/openapi.json",
                   "--max-examples", "20", "--seed", "0", "--no-color"]
        paths = os.pathsep.join(map(str, (serving.ROOT, FOLDER.parent, FOLDER)))
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600,
                              env={**os.environ, "PYTHONPATH": paths, "SCHEMATHESIS_HOOKS": "hooks"})
        figures = server.ask("GET", "/metrics", headers={"X-API-Key": KEY})[2].decode()
    finally:
        server.kill()
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r'^minigdino_requests_total{path="/v1/detect",status="(\d+)"} (\d+)', figures,
                             re.MULTILINE))
    assert int(counts["200"]) > 50 and int(counts["422"]) > 50
    assert len(server.lines) == 1  # no worker has ended, and there is no traceback
