"""What the service tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "ezxmc_requests", "Requests answered.", ["path", "method", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "ezxmc_request_seconds",
            "From a request's headers to its answer's end.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.documents = Counter("ezxmc_documents", "Documents tagged.", registry=self._registry)
        self.batches = Histogram(
            "ezxmc_batch_documents",
            "Documents computed together.",
            buckets=_SIZES,
            registry=self._registry,
        )
        self.reloads = Counter(
            "ezxmc_reloads", "Bundles loaded (ok) or refused.", ["outcome"], registry=self._registry
        )

    def watch(self, waiting: Callable[[], float], labels: Callable[[], float]) -> None:
        """Read these whenever Prometheus asks: documents that wait, labels in the bundle."""
        Gauge("ezxmc_queue_documents", "Documents that wait.", registry=self._registry).set_function(waiting)
        Gauge("ezxmc_labels", "Labels that can be answered.", registry=self._registry).set_function(labels)

    def text(self) -> bytes:
        """All of it in Prometheus's text format, version 0.0.4."""
        return generate_latest(self._registry)
