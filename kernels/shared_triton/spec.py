"""What is compiled into the scanning kernels: one compile-time argument, SPEC, instead of twenty."""

from typing import NamedTuple

IN_REGISTERS = 2
"""States per channel that a scan keeps in registers; more live in memory, with a barrier (of one warp) a tile."""

KEPT_RANKS, KEPT_RANKS_OF_MANY = 16, 32
"""Ranks whose float32 weights a scan of few states, or of many, keeps in registers. More are read again: of few states
for the last, ragged tile, of many states for every tile if inputs are float32."""


class Spec(NamedTuple):
    """Sizes, routes and arithmetic of a scanning kernel.

    Attributes:
        K, D, N, R: walks of an image, channels, states of a channel, rank of the time steps (0: they are ready).
        RB: ranks of one matrix product.
        COLUMNS, REVERSES, KEEPS: bit k set if walk k goes by columns, against the order, keeps the output order.
        GROUPED: every walk has channels of its own, instead of all the same.
        SOFTPLUS: whether time steps go through softplus.
        CHUNKED: whether a sequence is scanned in chunks, which have states to start from.
        BL, BD: positions and channels of a tile.
        VECTOR: neighbouring channels of a lane.
        LONG_LINES, LARGE: a line has at least BL positions; a grid needs a division (`routes.is_large`).
        FAST, EXACT, OPERAND, PRECISION: see `numerics.numerics`.
    """

    K: int
    D: int
    N: int
    R: int
    RB: int
    COLUMNS: int
    REVERSES: int
    KEEPS: int
    GROUPED: bool
    SOFTPLUS: bool
    CHUNKED: bool
    BL: int
    BD: int
    VECTOR: int
    LONG_LINES: bool
    LARGE: bool
    FAST: bool
    EXACT: bool
    OPERAND: str
    PRECISION: str

    @property
    def MANY(self) -> bool:
        """Whether states live in memory."""
        return self.N > IN_REGISTERS

    @property
    def BLOCKS(self) -> int:
        """Blocks of channels."""
        return -(-self.D // self.BD)

    @property
    def RANK_BLOCKS(self) -> int:
        """Blocks of ranks."""
        return -(-self.R // self.RB)

    @property
    def X_STRIDE(self) -> int:
        """From a pixel of x to the next."""
        return self.K * self.D if self.GROUPED else self.D

    @property
    def COLUMNS_OF_WALK(self) -> int:
        """Projections of a pixel for one walk: time steps, Bs, Cs."""
        return self.R + 2 * self.N

    @property
    def P_STRIDE(self) -> int:
        """From a pixel's projections to the next one's."""
        return self.K * self.COLUMNS_OF_WALK

    @property
    def READS_WEIGHTS(self) -> bool:
        """Whether a forward kernel reads the time steps' weights again for every tile."""
        return self.EXACT and self.MANY and self.R > KEPT_RANKS_OF_MANY

    @property
    def READS_WEIGHTS_ONCE_MORE(self) -> bool:
        """Whether it reads them again for the ragged tile alone."""
        return self.OPERAND == 'fp32' and not self.MANY and self.R > KEPT_RANKS


def rank_block(rank: int, states: int, operand: str) -> int:
    """Ranks of one matrix product: as many as cause no padding beyond the tensor cores' 16 and no spilling."""
    two = -(-rank // 16) % 2 == 0 and rank > 0
    return 32 if two and operand == 'bf16' and states <= IN_REGISTERS else 16


def scan_block(channels: int, states: int, rank: int, exact: bool) -> int:
    """Channels of a forward program, which is one warp: as many as the registers hold rows of, none of them wasted."""
    return 64 if channels % 64 == 0 and states <= IN_REGISTERS and not (exact and rank > 32) else 32


def scan_bwd_block(channels: int, states: int) -> int:
    """Channels of a program that differentiates, one a lane: two warps share what does not depend on the channel."""
    return 64 if channels % 64 == 0 and states <= IN_REGISTERS else 32
