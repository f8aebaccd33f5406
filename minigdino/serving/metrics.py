"""Figures of the server for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .pool import Pool

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


class Metrics:
    """Counters and histograms of requests, and the state of a pool.

    Args:
        pool: the pool, which is read when the figures are requested.
    """

    def __init__(self, pool: Pool):
        self._pool, self._registry = pool, CollectorRegistry()
        self._requests = Counter("minigdino_requests", "Requests, by path and status. 499: the client left before the "
                                 "answer.", ["path", "status"], registry=self._registry)
        self._stages = {name: Histogram(f"minigdino_{name}_seconds", f"{text} of a request.", buckets=SECONDS,
                                        registry=self._registry)
                        for name, text in (("waiting", "Seconds in the queue"), ("decoding", "Seconds of decoding"),
                                           ("computing", "Seconds of detection, and of drawing"))}
        pool.waited = self._stages["waiting"].observe
        self._registry.register(self)  # type: ignore[arg-type]  # a collector is anything with this method

    def collect(self) -> Iterator[Metric]:
        """Yield the state of the pool, as Prometheus's client calls it."""
        pool = self._pool
        yield GaugeMetricFamily("minigdino_queue_length", "Requests that wait for a worker.", pool.waiting)
        yield GaugeMetricFamily("minigdino_workers_busy", "Workers that process a request.", pool.busy)
        yield GaugeMetricFamily("minigdino_workers_ready", "Workers that made progress lately.", pool.ready)
        memory = GaugeMetricFamily("minigdino_worker_memory_bytes", "Memory of a worker, without shared weights.",
                                   labels=["worker"])
        for i, size in enumerate(pool.memory):
            memory.add_metric([str(i)], size)
        yield memory
        restarts = CounterMetricFamily("minigdino_worker_restarts", "Workers that were replaced, by reason.",
                                       labels=["reason"])
        for reason, count in pool.restarts.items():
            restarts.add_metric([reason], count)
        yield restarts

    def count(self, path: str, status: int) -> None:
        """Count a request.

        Args:
            path: the path of its route, not that of the request, of which there are any number.
            status: the HTTP status.
        """
        self._requests.labels(path, str(status)).inc()

    def observe(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds of an answered request: "decoded" and "computed". The pool adds those in the queue."""
        for name, stage in (("decoded", "decoding"), ("computed", "computing")):
            self._stages[stage].observe(seconds[name])

    def text(self) -> bytes:
        """Return all figures in the text format of Prometheus."""
        return generate_latest(self._registry)
