"""Statistics of one series of measurements: quantiles, summaries, distribution. Pure."""

import dataclasses
import math
from collections.abc import Sequence


def quantile(values: Sequence[int], q: float) -> int:
    """The nearest-rank quantile: always a value that was measured, never one made up between two of them."""
    if not values:
        raise ValueError("no values, no quantile")
    if not 0 < q <= 1:
        raise ValueError(f"a quantile lies in (0, 1], {q} does not")
    return sorted(values)[math.ceil(q * len(values)) - 1]


def ecdf(values: Sequence[int], runs: int) -> list[tuple[int, float]]:
    """For each value, in order, the share of all runs that were done by then. What failed is never done."""
    return [(value, (i + 1) / runs) for i, value in enumerate(sorted(values))]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a table shows of a series."""

    p50_ns: int
    p90_ns: int
    p99_ns: int
    runs: int
    failures: int


@dataclasses.dataclass
class Series:
    """What one contender did for one metric: times of the runs that worked, and what the others said."""

    contender: str
    metric: str
    samples_ns: list[int] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    @property
    def runs(self) -> int:
        """All runs, failed ones too."""
        return len(self.samples_ns) + len(self.failures)

    def summary(self) -> Summary | None:
        """None when no run worked: then there is nothing but failures to tell."""
        if not self.samples_ns:
            return None
        p50, p90, p99 = (quantile(self.samples_ns, q) for q in (0.5, 0.9, 0.99))
        return Summary(p50, p90, p99, self.runs, len(self.failures))


def histogram_quantile(buckets: Sequence[tuple[float, float]], q: float) -> float | None:
    """The quantile of a Prometheus histogram, as (upper bound, cumulative count): linear inside its bucket.

    None when it is empty, or when the quantile lies in the last bucket, which has no end.
    """
    total = buckets[-1][1] if buckets else 0
    lower, below = 0.0, 0.0
    for upper, count in buckets:
        if total and count >= q * total:
            if math.isinf(upper):
                return None
            return lower + (upper - lower) * (q * total - below) / (count - below)
        lower, below = upper, count
    return None
