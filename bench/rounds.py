"""Asks all contenders in turn, round after round, so that the machine's noise hits all of them alike."""

import random
import time
from collections.abc import Callable, Sequence

from bench import series
from bench.contenders import contract

# One that fails so often in a row, without ever having worked, will not start to; its row tells.
_GIVE_UP_AFTER = 10


def run(
    contenders: Sequence[contract.Contender],
    runs: int,
    warmup: int,
    settle_s: float,
    progress: Callable[[str, series.Series], None],
) -> list[series.Series]:
    """`runs` rounds; in each, every contender once for each metric, in an order drawn anew from a fixed seed."""
    pairs = [(contender, metric) for contender in contenders for metric in contender.metrics]
    all_series = {(c.key, m): series.Series(c.key, m) for c, m in pairs}
    order = random.Random(0)  # noqa: S311 (an order, not a secret)
    for number in range(-warmup, runs):
        order.shuffle(pairs)
        for contender, metric in pairs:
            kept = all_series[contender.key, metric]
            if number >= 0 and _hopeless(kept):
                continue
            # What the last one left to be torn down in the background is not the next one's cost.
            time.sleep(settle_s)
            one(contender, metric, kept if number >= 0 else series.Series(contender.key, metric))
            progress("warm-up" if number < 0 else f"{number + 1}/{runs}", kept)
    return list(all_series.values())


def one(contender: contract.Contender, metric: str, into: series.Series) -> None:
    """One run, kept as a time or as a failure."""
    try:
        into.samples_ns.append(contender.measure(metric))
    except Exception as error:  # here a run ends, whatever a foreign client may have raised
        into.failures.append(f"{type(error).__name__}: {error}"[:500])


def _hopeless(kept: series.Series) -> bool:
    return not kept.samples_ns and len(kept.failures) >= _GIVE_UP_AFTER
