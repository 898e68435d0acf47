"""The server's own view of its start-up time: its Prometheus histogram, over the time of the measurement."""

import contextlib

from prometheus_client import parser

from bench import series, server
from bench.contenders import contract

_NAME = "sandbox_startup_time_seconds"

Buckets = dict[float, float]


def read(subject: server.Server) -> Buckets:
    """The buckets so far, summed over all labels; empty where the server is not running or has no such metric."""
    if not subject.url:
        return {}
    with contextlib.closing(server.Client(subject)) as client:
        try:
            text = client.text("/metrics")
        except contract.MeasureError:
            return {}
    return parse(text or "")


def parse(text: str) -> Buckets:
    """Buckets of the histogram by their upper bound, whatever prefix its name has."""
    buckets: Buckets = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith(f"{_NAME}_bucket"):
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
    return buckets


def between(before: Buckets, after: Buckets) -> dict[str, float] | None:
    """Count and quantiles of what came in between; None when nothing did."""
    buckets = [(bound, after[bound] - before.get(bound, 0.0)) for bound in sorted(after)]
    if not buckets or not buckets[-1][1]:
        return None
    found = {"count": buckets[-1][1]}
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        value = series.histogram_quantile(buckets, q)
        if value is not None:
            found[name] = value
    return found
