"""What Prometheus reads at /metrics."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lm.serving.worker import Worker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_compiled = 0
_listening = False


def count_compilations() -> None:
    """From now on `compilations` counts every program that jax compiles or loads in this process."""
    global _listening
    if _listening:
        return
    import jax

    def heard(event: str, duration_secs: float, **_: str | int) -> None:
        global _compiled
        _compiled += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(heard)
    _listening = True


def compilations() -> int:
    return _compiled


class Metrics:
    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.registry = CollectorRegistry()
        make: Any = dict(registry=self.registry, namespace="lm")
        self.requests = Counter("requests", "Requests by path and status.", ["path", "code"], **make)
        self.tokens = Counter("tokens", "Tokens read (in) and written (out).", ["model", "direction"], **make)
        self.first = Histogram("first_token_seconds", "From a request to its first tokens.", ["model"], buckets=SECONDS, **make)
        self.seconds = Histogram("request_seconds", "From a request to its end.", ["path"], buckets=SECONDS, **make)
        slots = Gauge("slots_busy", "Slots in which a text is being written.", ["model"], **make)
        queue = Gauge("queue", "Texts and calls that wait.", ["model"], **make)
        alive = Gauge("worker_alive", "1 if the thread that computes is alive.", ["model"], **make)
        for name, worker in workers.items():
            slots.labels(name).set_function(lambda worker=worker: worker.busy)
            queue.labels(name).set_function(lambda worker=worker: worker.waiting)
            alive.labels(name).set_function(lambda worker=worker: float(worker.alive))
        compiled = Gauge("compilations", "Programs compiled since the start; none after it.", **make)
        compiled.set_function(compilations)

    def text(self) -> bytes:
        return generate_latest(self.registry)
