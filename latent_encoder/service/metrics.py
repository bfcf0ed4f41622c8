"""What Prometheus is told of this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from latent_encoder.models import EncodeResponse

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """The numbers of one service, in a registry of their own.

    Attributes:
        registry: to which a door adds its own.
        http_requests: answers by ``route``, ``method``, ``status`` and ``code`` (``success`` or an error code).
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.http_requests = Counter(
            "latent_encoder_http_requests",
            "HTTP requests that were answered; code is success or an error code.",
            ["route", "method", "status", "code"],
            registry=self.registry,
        )
        self._encodes = Counter(
            "latent_encoder_encodes",
            "Pictures that were encoded, or failed to be, by code: success or an error code.",
            ["code"],
            registry=self.registry,
        )
        self._reused = Counter(
            "latent_encoder_reused", "Requests that were answered from a file that was there.", registry=self.registry
        )
        self._duration = self._histogram("latent_encoder_encode_seconds", "From a request's start to its answer.")
        self._queue = self._histogram("latent_encoder_queue_seconds", "From a request's arrival to its start.")
        self._bytes = Counter(
            "latent_encoder_written_bytes", "The bytes of the latent files that were written.", registry=self.registry
        )

    def _histogram(self, name: str, description: str) -> Histogram:
        return Histogram(name, description, buckets=SECONDS, registry=self.registry)

    def watch_engine(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Add whether the engine can take work."""
        ready = {name: lambda: float(is_ready())}
        self.watch("latent_encoder_engine_ready", "1 while the engine can take work.", "engine", ready)

    def watch(self, name: str, description: str, label: str, values: Mapping[str, Callable[[], float]]) -> None:
        """Add a gauge whose values, by what their label says, are read when Prometheus asks."""
        gauge = Gauge(name, description, [label], registry=self.registry)
        for value, read in values.items():
            gauge.labels(value).set_function(read)

    def count(self, response: EncodeResponse) -> None:
        """Count one answer of the encoder's."""
        self._encodes.labels(response.error_code or "success").inc()
        self._duration.observe(response.metadata["processing_time_ms"] / 1000)
        self._queue.observe(response.metadata["queue_time_ms"] / 1000)
        if response.metadata.get("reused"):
            self._reused.inc()
        elif response.status == "success":
            self._bytes.inc(response.metadata["file_bytes"])

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
