"""What samples come to: percentiles, ratios of medians with an interval, floors, and how many failed.

Samples that failed count nowhere but in `failed`.

A percentile is interpolated between the two nearest samples: definition 7 of R. J. Hyndman and Y. Fan, "Sample
quantiles in statistical packages", The American Statistician 50(4), 1996. The p50 is then the usual median, and the
p95 of ten samples lies between the two largest.

An interval is the percentile interval of B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13. What is drawn again are rounds, each with all of its nodes and all of its arms, as in the bootstrap of
clusters (A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8): arms take
turns within a round, so what disturbed a round disturbed all of them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from slimgpu.bench.results import ANSWER, STAGES, TOTAL, WARM, Figure, Floor, Ratio, stretches

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from slimgpu.bench.results import LinkFacts, Sample

_DRAWS: Final = 10_000
_PARTS: Final = 10
_SEED: Final = 20_240_229
_INTERVAL: Final = (2.5, 97.5)
FEWEST_ROUNDS: Final = 6
"""A median of 5 samples lies outside of all of them more often than in 5 % of cases (2 x 0.5^5), of 6 less often."""
_DIGITS: Final = 6
"""Microseconds; more digits of a second are noise."""


def percentile(values: Sequence[float], share: float) -> float:
    """The ``share`` (0 to 100) percentile of at least one value, see the top of this file."""
    return round(float(np.percentile(values, share, method="linear")), _DIGITS)


def seconds_of(sample: Sample, stage: str) -> float | None:
    """Seconds of one quantity of a sample, see `Figure.stage`; None for what did not happen.

    A stage lasts as long as any of its spans is under way: what runs side by side counts once.
    """
    if stage in {TOTAL, WARM, ANSWER}:
        return {TOTAL: sample.total, WARM: sample.warm, ANSWER: sample.answer}[stage]
    spans = [span for span in sample.spans if span.stage == stage]
    return sum(end - begin for begin, end in stretches(spans)) if spans else None


def figures(samples: Iterable[Sample]) -> tuple[Figure, ...]:
    """Every quantity of every arm that at least one good sample has; arms in the order of their samples."""
    good = _by_arm(samples)
    return tuple(
        Figure(arm, stage, len(values), percentile(values, 50), percentile(values, 95), round(max(values), _DIGITS))
        for arm, of_arm in good.items()
        for stage in STAGES
        if (values := _values(of_arm, stage))
    )


def failed(samples: Iterable[Sample]) -> dict[str, int]:
    """How many samples of each arm failed; arms without a failure are not in it."""
    return dict(Counter(sample.arm for sample in samples if not _is_good(sample)))


def ratios(samples: Iterable[Sample], base: str) -> tuple[Ratio, ...]:
    """How many times faster each arm is than ``base``, for every quantity that both have and that takes time."""
    good = _by_arm(samples)
    compared = [(arm, stage) for arm in good if arm != base and base in good for stage in STAGES]
    found = (_ratio(good, base, arm, stage) for arm, stage in compared)
    return tuple(ratio for ratio in found if ratio is not None)


def floors(samples: Iterable[Sample], link: LinkFacts, nodes: int) -> tuple[Floor, ...]:
    """What no way could be faster than, for each arm with a good sample.

    The bytes are those that did come from the registry: the mean over samples, times ``nodes``, is a round's.
    """
    found = []
    for arm, of_arm in _by_arm(samples).items():
        wire = sum(sample.wire for sample in of_arm) / len(of_arm) * nodes
        warm = _values(of_arm, WARM)
        seconds = round(8 * wire / link.bandwidth, _DIGITS) if link.bandwidth else 0.0
        found.append(Floor(arm, seconds, percentile(warm, 50) if warm else None))
    return tuple(found)


def interval(
    base: NDArray[np.float64], arm: NDArray[np.float64], *, paired: bool = True
) -> tuple[float | None, float | None]:
    """The 95 % interval of ``median(base) / median(arm)``; None twice when there are too few rounds.

    Both are rounds x samples, NaN where a sample is missing. ``paired``: the same rounds of both are drawn together.
    """
    if min(_rounds(base), _rounds(arm)) < FEWEST_ROUNDS:
        return None, None
    found = [_drawn(base, arm, generator, paired=paired) for generator in np.random.default_rng(_SEED).spawn(_PARTS)]
    values = np.concatenate(found)
    if not len(values):
        return None, None
    low, high = np.percentile(values, _INTERVAL)
    return round(float(low), _DIGITS), round(float(high), _DIGITS)


def _drawn(
    base: NDArray[np.float64], arm: NDArray[np.float64], draw: np.random.Generator, *, paired: bool
) -> NDArray[np.float64]:
    """Ratios of one part of the draws: all at once could be too large for memory."""
    draws = _DRAWS // _PARTS
    rows = draw.integers(0, len(base), (draws, len(base)))
    others = rows if paired else draw.integers(0, len(arm), (draws, len(arm)))
    above, below = _medians(base[rows].reshape(draws, -1)), _medians(arm[others].reshape(draws, -1))
    usable = (above > 0) & (below > 0)  # False for NaN: nothing good was drawn
    ratios_drawn: NDArray[np.float64] = above[usable] / below[usable]
    return ratios_drawn


def by_round(samples: Sequence[Sample], stage: str, rounds: Iterable[int]) -> NDArray[np.float64]:
    """Seconds as ``rounds`` x samples of the round, NaN where there is none."""
    values: dict[int, list[float]] = {number: [] for number in rounds}
    for sample in samples:
        seconds = seconds_of(sample, stage)
        if seconds is not None:
            values[sample.round].append(seconds)
    table = np.full((len(values), max((len(row) for row in values.values()), default=0)), np.nan)
    for number, row in enumerate(values.values()):
        table[number, : len(row)] = row
    return table


def good_samples(samples: Iterable[Sample], arm: str) -> list[Sample]:
    """Those of ``arm`` that came to a first output."""
    return [sample for sample in samples if sample.arm == arm and _is_good(sample)]


def _ratio(good: dict[str, list[Sample]], base: str, arm: str, stage: str) -> Ratio | None:
    before, after = _values(good[base], stage), _values(good[arm], stage)
    if not before or not after or not (above := percentile(before, 50)) or not (below := percentile(after, 50)):
        return None
    rounds = sorted({sample.round for sample in (*good[base], *good[arm])})
    low, high = interval(by_round(good[base], stage, rounds), by_round(good[arm], stage, rounds))
    return Ratio(arm, stage, base, round(above / below, _DIGITS), low, high)


def _medians(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each row, NaN left out; NaN for a row of nothing else."""
    ordered = np.sort(rows, axis=1)  # NaN last
    counts = np.count_nonzero(~np.isnan(rows), axis=1)
    each = np.arange(len(rows))
    middle: NDArray[np.float64] = (ordered[each, (counts - 1) // 2] + ordered[each, counts // 2]) / 2
    return middle


def _rounds(table: NDArray[np.float64]) -> int:
    return int(np.count_nonzero((~np.isnan(table)).any(axis=1)))


def _values(samples: Iterable[Sample], stage: str) -> list[float]:
    found = (seconds_of(sample, stage) for sample in samples)
    return [seconds for seconds in found if seconds is not None]


def _by_arm(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """The good samples of each arm that has any, arms in the order in which they were started."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.arm, []).extend([sample] if _is_good(sample) else [])
    return {arm: good for arm, good in found.items() if good}


def _is_good(sample: Sample) -> bool:
    return sample.total is not None and not sample.failure
