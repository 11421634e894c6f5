"""How a route walks an H x W grid, and the route patterns of the paper.

A route reads the grid in some order, scans, and writes its outputs back. `ROUTES` names the four of each pattern in the
order in which the parameters are stacked.
"""

from typing import NamedTuple


class Route(NamedTuple):
    """One walk over the grid.

    Attributes:
        by_column: walk down the columns instead of along the rows.
        reverse: walk from the last position to the first.
        keep_order: write the t-th output to the t-th position of the forward walk instead of to the position that was
            read t-th. Only the cascade does so (its published code does not flip the reversed output back).
    """

    by_column: bool = False
    reverse: bool = False
    keep_order: bool = False


_ROW, _COLUMN = Route(), Route(by_column=True)
_ROW_BACK, _COLUMN_BACK = Route(reverse=True), Route(by_column=True, reverse=True)

PAIR = 'pair'
"""Half of a cascade: two routes over one-row grids, the second reversed and not flipped back."""

ROUTES: dict[str, tuple[Route, ...]] = {
    'cross': (_ROW, _COLUMN, _ROW_BACK, _COLUMN_BACK),
    'unidi': (_ROW, _ROW, _ROW, _ROW),
    'bidi': (_ROW, _ROW, _ROW_BACK, _ROW_BACK),
    PAIR: (_ROW, Route(reverse=True, keep_order=True)),
}

CASCADE = 'cascade'
PATTERNS = ('cross', 'unidi', 'bidi', CASCADE)
"""What users may ask for; a cascade is two pairs, with a normalisation before each."""


def sequence(grid, by_column):
    """Read `(B, H, W, D)` as `(B, L, D)`: a view along the rows, a copy down the columns."""
    return (grid.transpose(1, 2) if by_column else grid).flatten(1, 2)


def grid(sequence, by_column, height, width):
    """Lay `(B, L, D)` out as `(B, H, W, D)`, the inverse of `sequence`; always a view."""
    if by_column:
        return sequence.unflatten(1, (width, height)).transpose(1, 2)
    return sequence.unflatten(1, (height, width))
