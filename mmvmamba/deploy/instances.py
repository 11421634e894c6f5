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
    free = list(range(len(expected[0])))
    matched = 0
    for i in range(len(actual[0])):
        for j in free:
            if _alike([part[i] for part in actual], [part[j] for part in expected], longer_side, expected[1].max()):
                free.remove(j)
                matched += 1
                break
    count = len(actual[0]) + len(expected[0])
    return 1 - 2 * matched / count if count else 0.0


def _alike(actual, expected, longer_side, best):
    (box, score, label, *mask), (other_box, other_score, other_label, *other_mask) = actual, expected
    if label != other_label or not np.abs(box - other_box).max() <= POSITION * longer_side:
        return False
    if not abs(score - other_score) <= SCORE * best:
        return False
    return not mask or (mask[0] != other_mask[0]).sum() <= max(1, MASK * (mask[0] | other_mask[0]).sum())
