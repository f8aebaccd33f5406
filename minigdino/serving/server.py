"""`minigdino serve`: what the command does with its arguments."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from .. import urls
from ..checkpoints import hub
from ..console import complain, printable
from ..detect_arguments import check_limits
from ..detector import EMBEDDED_MODELS, load
from ..errors import ArgumentError, Error
from ..extras import require
from ..runtime.threads import MAX_THREADS, threads_each
from ..writing import reason

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart",
            "prometheus_client": "prometheus-client"}  # module -> its name for pip
KEY = "MINIGDINO_API_KEY"
BACKLOG = 1024  # connections that the system accepts before the server does
FILES, WORKER_FILES = 64, 3  # file descriptors of the web process besides connections, and of each worker
MIN_SPARE, SPARE = 40, 1000  # connections besides those of accepted requests: downloads, uploads, health checks
LIMITS = {"workers": (1, 1024), "threads": (1, MAX_THREADS), "port": (0, 65535), "max_pixels": (1, 10**9),
          "max_bytes": (1, 10**9), "queue": (0, 10**6), "timeout": (0.001, 86400), "max_memory": (1, 10**9)}


def run(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> None:
    """Serve until a signal ends the process.

    Args:
        arguments: values of the options.
        environment: environment variables.

    Raises:
        Error: if an argument is invalid, a package is missing, or the model cannot be loaded, or after a second signal.
    """
    for module, package in PACKAGES.items():
        require(module, "minigdino serve", package, otherwise=', or all that it needs: pip install "minigdino[serve]"')
    _check(arguments, environment)
    key = arguments.api_key if arguments.api_key is not None else environment.get(KEY)
    if key is not None and not key.strip():
        raise ArgumentError(f"--api-key or ${KEY} must not be empty; got {key!r}. Choose a long random key, or set "
                            "none")
    with _listener(arguments.host, arguments.port) as listener:
        asyncio.run(_serve(arguments, key, listener))


def _check(arguments, environment):
    check_limits(arguments, LIMITS)
    if arguments.allow_urls and environment.get(urls.PRIVATE) == "1":
        raise ArgumentError(f"--allow-urls does not work with {urls.PRIVATE}=1, by which a client could reach private "
                            "addresses through the server. Unset the variable")


async def _serve(arguments, key, listener):
    from .app import Settings, create
    from .pool import Pool
    from .processes import Process
    from .web import Service
    from .worker import Setup, run

    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs each malformed form
    workers = arguments.workers or threads_each(arguments.threads or 2)  # as many as there are CPUs for
    threads = arguments.threads or threads_each(workers)
    connections = _connections(arguments.queue, workers)
    source = _source(arguments.model)
    model = load(source, precision=arguments.precision)
    name = model_name(source)
    setup = Setup(pickle.dumps(model), name, model.precision, threads, arguments.max_pixels)
    settings = Settings(name, model.precision, arguments.max_bytes, arguments.timeout, arguments.allow_urls, key,
                        arguments.cors or ())
    del model  # without mapped weights, it would need their memory
    pool = Pool(partial(Process.start, run, setup), workers, queue=arguments.queue, timeout=arguments.timeout,
                max_memory=arguments.max_memory and arguments.max_memory * 10**6, log=_log)
    service = Service(pool, create(pool, settings), listener, connections, _log)
    handlers = _handle_signals(service.stop)
    try:
        await service.run(lambda: _announce(name, listener, workers, threads, key))
    except asyncio.CancelledError:
        raise Error("a second signal ended the server, without waiting for accepted requests") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _connections(queue, workers):
    """The largest number of connections, so that descriptors are left for workers and files."""
    accepted, others = queue + workers, FILES + WORKER_FILES * workers
    needed, files = others + accepted + MIN_SPARE, _open_files()
    if files < needed:
        raise ArgumentError(f"--queue {queue} and --workers {workers} need {needed} open files; the system allows "
                            f"{files}. Raise that limit by `ulimit -n {needed}`, or use a smaller --queue")
    return min(files - others, accepted + SPARE)


def _open_files():
    """The number of files that the system allows this process to open."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else files


def _log(line):
    complain(f"minigdino: {printable(line)}")


def _announce(name, listener, workers, threads, key):
    host, port = listener.getsockname()[:2]
    complain(f"serving {printable(name)} at http://{f'[{host}]' if ':' in host else host}:{port} with {workers} "
             f"worker{'s' * (workers != 1)} of {threads} thread{'s' * (threads != 1)}. Ctrl-C ends the server")
    if key is None and not ipaddress.ip_address(host).is_loopback:
        complain(f"minigdino: warning: everyone who reaches {host} can use this server. Set a key by ${KEY}")


def _handle_signals(stop):
    """Call a function in the event loop at SIGINT and SIGTERM. Returns the handlers before."""
    loop = asyncio.get_running_loop()
    return {number: signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
            for number in (signal.SIGINT, signal.SIGTERM)}


def _source(model):
    """The source of the model. Without one, a cached model is used before the embedded one; none is downloaded."""
    if model is not None or os.environ.get("MINIGDINO_MODEL"):
        return model or os.environ["MINIGDINO_MODEL"]
    cached = hub.cached()
    source = hub.DEFAULT if hub.DEFAULT in cached else next(iter(cached), EMBEDDED_MODELS[0])
    if not cached:
        complain("no --model is given and none is cached: serving the embedded checkpoint, which knows drawn shapes "
                 "only. `minigdino download grounding-dino-tiny` gets a general one")
    return source


def model_name(source: str | Path) -> str:
    """Return the name of a model for clients, without the path of this machine.

    Args:
        source: a source of `load`.

    Returns:
        The model id, or the name of the folder or file.
    """
    resolved = hub.resolved(str(source))
    if resolved in EMBEDDED_MODELS or hub.is_model_id(resolved):
        return resolved
    path = Path(source)
    return (path.stem if path.suffix == ".safetensors" else path.name) or Path(os.path.abspath(path)).name or "model"


def _listener(host, port):
    """A listening socket."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise ArgumentError(f"{host}:{port}: cannot listen there ({reason(error)}). Choose another --host or "
                            "--port") from None
