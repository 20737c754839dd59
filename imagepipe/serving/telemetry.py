"""Metrics of the server for Prometheus, and its log as JSON."""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from imagepipe.base.process import read_private_memory

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder of the metrics of a server's workers; not set where there is one process."""

REQUESTS = Counter("imagepipe_requests", "Requests by route and status.", ["route", "status"])
REFUSED = Counter("imagepipe_refused", "Requests that were refused, by reason.", ["reason"])
DROPPED = Counter(
    "imagepipe_dropped",
    "Connections that were cut while their client owed something, by what it was slow with, or for want of a place.",
    ["reason"],
)
SECONDS = Histogram(
    "imagepipe_request_seconds",
    "From a request's first byte to its answer's last.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
BATCH_SIZES = Histogram("imagepipe_batch_size", "Images per call of the network.", buckets=(1, 2, 4, 8, 16, 32))
VERSION = Gauge(
    "imagepipe_model_version", "The version that is live; with several workers, in all.", multiprocess_mode="livemin"
)
VERSION.set(math.inf)  # until one is live: the oldest of all workers is never that of one that still loads
ANSWERS = Counter(
    "imagepipe_answers", "Answers by version and label; '' for images without a label.", ["version", "label"]
)
SCORES = Histogram(
    "imagepipe_score",
    "Scores of a classification or of several labels, by version.",
    ["version"],
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1),
)
NOVELTY = Histogram(
    "imagepipe_novelty",
    "Novelty of the images, by version.",
    ["version"],
    buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1),
)
CAPTURED = Counter(
    "imagepipe_captured_images",
    "Captured images, and requests that failed, by what became of their rows: written; dropped, as the queue was full; "
    "lost, as there is no file.",
    ["outcome"],
)
SHADOW_IMAGES = Counter(
    "imagepipe_shadow_images",
    "Images for the version in shadow by what became of them: answered; dropped, as too many were waiting; failed.",
    ["version", "outcome"],
)
SHADOW_AGREED = Counter(
    "imagepipe_shadow_agreed_images",
    "Images to which the version in shadow gave the live version's label, of classes or several labels.",
    ["version"],
)
SHADOW_SECONDS = Histogram(
    "imagepipe_shadow_seconds",
    "Time that the version in shadow takes for a request, where no other program wants the CPU.",
    ["version"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


LIVE_SERIES = (ANSWERS, SCORES, NOVELTY)
"""Metrics of the live version."""

SHADOW_SERIES = (SHADOW_IMAGES, SHADOW_AGREED, SHADOW_SECONDS)
"""Metrics of the version in shadow."""

_RECENT = 2  # versions: the one before may still answer


class RecentVersions:
    """Removes the series of versions that are no longer served: with a version a night they grow without end.

    Not where a server has several workers: prometheus_client can't remove series from their files. There they go when
    the server starts again.
    """

    def __init__(self, metrics: Sequence[Counter | Histogram]):
        """Starts with no version; ``metrics`` are those whose series have the label ``version``."""
        self._metrics = metrics
        self._versions: list[str] = []

    def add(self, version: str) -> None:
        """Keeps the series of a version, which is served from now on, and of the one before."""
        versions = [*(other for other in self._versions if other != version), version]
        self._versions = versions[-_RECENT:]
        for other in versions[:-_RECENT] if METRICS_FOLDER not in os.environ else ():
            for metric in self._metrics:
                metric.remove_by_labels({"version": other})


class PrivateMemory(Collector):
    """The private memory of this process, or of each of the server's workers, measured when somebody asks."""

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yields the metric without values."""
        text = "Memory of each process of the server that no other process shares."
        yield GaugeMetricFamily("imagepipe_private_memory_bytes", text, labels=["pid"])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the metric with a value per process, as far as the system tells."""
        for metric in self.describe():
            for pid in _list_processes():
                if (size := read_private_memory(pid)) is not None:
                    metric.add_metric([str(pid)], size)
            yield metric


def _list_processes() -> list[int]:
    if METRICS_FOLDER not in os.environ:
        return [os.getpid()]
    files = Path(os.environ[METRICS_FOLDER]).glob("gauge_live*.db")  # which those that have ended have no more
    return sorted({int(number[1]) for file in files if (number := re.search(r"_(\d+)\.db$", file.name))})


PRIVATE_MEMORY = PrivateMemory()
REGISTRY.register(PRIVATE_MEMORY)


class _JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON, with the ``fields`` that the caller added."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure_logging() -> None:
    """Makes this process log to standard output, one JSON object per line."""
    output = logging.StreamHandler(sys.stdout)
    output.setFormatter(_JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[output], force=True)
    logging.getLogger("imagepipe").setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what is wrong with a form, its sender is told
