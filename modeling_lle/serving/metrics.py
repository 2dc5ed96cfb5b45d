"""Metrics of the server for Prometheus; none of them tells of a single tenant."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from .served import Models

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts requests, and reads the rest from the models when it is asked for.

    Args:
        models: The models.
    """

    def __init__(self, models: Models) -> None:
        self.registry, self.models = CollectorRegistry(), models
        own: dict[str, Any] = {"registry": self.registry}
        self._seconds = Histogram("lle_request_seconds", "Time to answer.", ["route"], buckets=_SECONDS, **own)
        self._requests = Counter("lle_requests", "Requests.", ["route", "status"], **own)
        self._tokens = Counter("lle_tokens", "Tokens.", ["model", "kind"], **own)
        self.running = Gauge("lle_requests_running", "Requests that are being answered.", **own)
        self.registry.register(self)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._seconds.labels(route).observe(seconds)
        self._requests.labels(route, str(status)).inc()

    def tokens(self, model: str, read: int, made: int) -> None:
        """Counts the tokens of a prediction."""
        self._tokens.labels(model, "read").inc(read)
        self._tokens.labels(model, "generated").inc(made)

    def collect(self) -> list[GaugeMetricFamily]:
        """What the models tell, for the registry."""
        about = {
            "lle_queue": ("Requests that wait for a model.", lambda own: own.worker.waiting),
            "lle_rows_running": ("Texts that are being generated.", lambda own: own.worker.running),
            "lle_entries": ("Entries of all open histories.", lambda own: own.histories.entries()),
            "lle_sessions": ("Sessions.", lambda own: own.sessions.count()),
            "lle_session_hits": ("Calls that went on with a session.", lambda own: own.sessions.hits),
            "lle_session_misses": ("Calls that began a session.", lambda own: own.sessions.misses),
        }
        families = []
        for name, (text, read) in about.items():
            family = GaugeMetricFamily(name, text, labels=["model"])
            for served in self.models.of.values():
                family.add_metric([served.name], read(served))
            families.append(family)
        return families

    def text(self) -> bytes:
        """All of them in Prometheus' format."""
        return generate_latest(self.registry)
