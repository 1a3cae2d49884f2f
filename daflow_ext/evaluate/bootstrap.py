"""Confidence intervals by resampling whole sequences, whose frames are not independent of each other."""

import numpy as np


def resample(count: int, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each of ``count`` sequences is drawn in each resample: [resamples, count]."""
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    return np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)


def interval(
    sums: np.ndarray, weights: np.ndarray, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of sum(sums) / sum(weights) when sequences are drawn with replacement.

    Shapes: both [S], one number per sequence. None with fewer than two sequences of any weight.
    """
    used = weights > 0
    if used.sum() < 2:
        return None
    times = resample(int(used.sum()), resamples, seed)
    ratios = times @ sums[used] / (times @ weights[used])
    return _percentiles(ratios, confidence)


def difference_interval(
    sums: tuple[np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of the first mean minus the second when both are taken over the same drawn sequences (paired).

    Shapes: each [S], the same sequences in the same order.
    """
    used = (weights[0] > 0) & (weights[1] > 0)
    if used.sum() < 2:
        return None
    times = resample(int(used.sum()), resamples, seed)
    first, second = (times @ s[used] / (times @ w[used]) for s, w in zip(sums, weights, strict=True))
    return _percentiles(first - second, confidence)


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
