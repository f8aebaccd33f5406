"""A model hub on 127.0.0.1 for tests: it answers `huggingface_hub`, records all requests, and can simulate faults."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


class LocalHub:
    """A hub that serves requests inside a `with LocalHub() as hub` block."""

    def __init__(self):
        self.models: dict[str, dict[str, str]] = {}  # {model: {revision: commit}}
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}  # {(model, commit): {file name: contents}}
        self.pages: dict[str, bytes] = {}  # {other path, such as an image's: contents}
        self.requests: list[tuple[str, str]] = []  # (method, path)
        self.gated: dict[str, str] = {}  # {model: token that grants access}
        self.down: set[str] = set()  # models whose requests are answered with status 503
        self.silent: set[str] = set()  # models whose requests get no answer
        self.stalled: dict[str, int] = {}  # {file name: bytes sent before the connection hangs}
        self.hanging: queue.Queue[str] = queue.Queue()  # names of files whose connections have begun to hang
        self.closing = threading.Event()

    def add(self, model_id: str, files: dict[str, bytes], *revisions: str) -> str:
        """Commit the files of a model.

        Args:
            model_id: owner/name.
            files: {file name: contents}.
            revisions: branches and tags that refer to the new commit; by default the main branch.

        Returns:
            The commit.
        """
        parts = [model_id.encode()] + [part for name, data in sorted(files.items()) for part in (name.encode(), data)]
        commit = hashlib.sha1(b"\0".join(parts)).hexdigest()
        self.files[model_id, commit] = files
        self.models.setdefault(model_id, {}).update(dict.fromkeys(revisions or ("main",), commit))
        return commit

    def fetched(self, model_id: str) -> list[str]:
        """Return the names of the files that were downloaded from a model, in order."""
        start = re.compile(rf"/{re.escape(model_id)}/resolve/[^/]+/")
        return [start.sub("", path) for method, path in self.requests if method == "GET" and start.match(path)]

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        raw = urlsplit(self.path).path
        path = unquote(raw)
        self.hub.requests.append((self.command, path))
        if path in self.hub.pages:
            return self.answer(200, self.hub.pages[path])
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", raw)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", raw)
        if not (about or file):
            return self.answer(404, b"{}")
        model_id, revision = (about or file).group(1), unquote((about or file).group(2) or "main")
        if model_id in self.hub.silent:
            self.hub.closing.wait(60)
            self.close_connection = True
            return None
        if model_id in self.hub.down:
            return self.answer(503, b"{}")
        if model_id not in self.hub.models:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        commit = self.hub.models[model_id].get(revision, revision)
        if (model_id, commit) not in self.hub.files:
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = self.hub.files[model_id, commit]
        if about:
            body = {"id": model_id, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            body |= {"private": False, "downloads": 0, "likes": 0, "tags": []}  # required by older clients
            return self.answer(200, json.dumps(body).encode())
        token = self.hub.gated.get(model_id)
        if token and self.headers["Authorization"] != f"Bearer {token}":
            return self.answer(403 if self.headers["Authorization"] else 401, b"{}", {"X-Error-Code": "GatedRepo"})
        return self.send_file(files, unquote(file.group(3)), commit)

    def send_file(self, files, name, commit):
        if name not in files:
            return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data = files[name]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if start:
            headers["Content-Range"] = f"bytes {start.group(1)}-{len(data) - 1}/{len(data)}"
            return self.answer(206, data[int(start.group(1)) :], headers)
        return self.answer(200, data, headers, None if self.command == "HEAD" else self.hub.stalled.get(name))

    def answer(self, status, body, headers=(), stall=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(body[:stall])
            if stall is not None:
                self.wfile.flush()
                self.hub.hanging.put(self.path.rpartition("/")[2])
                self.hub.closing.wait(60)
                self.close_connection = True
        except ConnectionError:  # the client disconnected
            self.close_connection = True


def files_of(directory: Path) -> dict[str, bytes]:
    """Read the files of a directory, as `LocalHub.add` expects them."""
    return {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without settings of minigdino, the hub client and proxies, plus `changes`."""
    removed = re.compile(r"(MINIGDINO|HF_|HUGGING|TRANSFORMERS_|XDG_|.*_PROXY$)", re.IGNORECASE)
    kept = {key: value for key, value in os.environ.items() if not removed.match(key)}
    return {**kept, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **changes}


LOOP = """
import json, sys
from minigdino import Error
from minigdino.checkpoints import hub
for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
        value = getattr(hub, name)(*arguments)
        answer = {"value": value if isinstance(value, list) else str(value)}
    except Error as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    print("=>" + json.dumps(answer), flush=True)
"""


class Client:
    """minigdino.checkpoints.hub in its own process, because the hub client reads its environment at import."""

    def __init__(self, code: str = LOOP, **env: str):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**env),
        )

    def start(self, name: str, *arguments) -> None:
        """Start a call of a function of the module, without waiting for its result."""
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict:
        """Wait for the result of the last call: {"value"} or {"error", "kind"}."""
        for line in self.process.stdout:
            if line.startswith("=>"):
                return json.loads(line[2:])
        pytest.fail(f"the client ended: {self.process.stderr.read()}")

    def call(self, name: str, *arguments) -> dict:
        """Call a function of the module and return its result as `answer` does."""
        self.start(name, *arguments)
        return self.answer()

    def path(self, name: str, *arguments) -> Path:
        """Call a function that must succeed, and return its result as a path."""
        answer = self.call(name, *arguments)
        assert "value" in answer, answer
        return Path(answer["value"])

    def error(self, name: str, *arguments) -> str:
        """Call a function that must raise CheckpointError, and return the message."""
        answer = self.call(name, *arguments)
        assert answer.get("kind") == "CheckpointError", answer
        return answer["error"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
