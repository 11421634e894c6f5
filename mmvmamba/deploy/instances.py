"""Whether two detectors, of which one is a file, find the same instances."""

from collections.abc import Sequence

import numpy as np

POSITION = 1e-4
"""Of the longer side of an image: how far corners of the same instance may lie apart."""

SCORE = 1e-3
"""Of the best score: how much the scores of the same instance may differ."""

MASK = 0.01
"""The part of an instance's pixels that two masks may not share."""

ALLOWED = 0.05
"""Which part of all instances may be without a counterpart: where two boxes score alike, rounding decides which of them
suppresses the other, and so which instances there are."""

FEWEST = 10
"""Where there are fewer instances than these, detectors are compared without a threshold for scores."""


def unmatched(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], longer_side: int) -> float:
    """The part of the instances of both without a counterpart in the other.

    Args:
        actual, expected: boxes `(N, 4)`, scores `(N,)`, labels `(N,)` and perhaps masks `(N, H, W)`.
        longer_side: of the image, pixels.
    """
    count = len(actual[0]) + len(expected[0])
    if min(len(actual[0]), len(expected[0])) == 0:
        return float(count > 0)
    alike = _alike(actual, expected, longer_side)
    matched = 0
    for i in range(len(actual[0])):
        for j in np.flatnonzero(alike[i]):
            if len(actual) < 4 or _same_mask(actual[3][i], expected[3][j]):
                alike[:, j] = False  # taken
                matched += 1
                break
    return 1 - 2 * matched / count


def _alike(actual, expected, longer_side):
    """`(N, M)`: whether boxes, scores and labels are alike."""
    boxes, scores, labels = (a[:, None] - e[None] for a, e in zip(actual[:3], expected[:3], strict=True))
    near = np.abs(boxes).max(2) <= POSITION * longer_side
    return near & (np.abs(scores) <= SCORE * expected[1].max()) & (labels == 0)


def _same_mask(actual, expected):
    return (actual != expected).sum() <= max(1, MASK * (actual | expected).sum())
