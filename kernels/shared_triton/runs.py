"""How programs share out runs of tokens or pixels, each with a block of channels."""

import triton
import triton.language as tl


@triton.jit
def program_of_run(count, T, D: tl.constexpr, BD: tl.constexpr):
    """This program's image, which run of T of the image's `count` items it takes, its channels `(BD,)`, their mask."""
    BLOCKS: tl.constexpr = tl.cdiv(D, BD)
    i = tl.program_id(0)
    o_d = (i % BLOCKS) * BD + tl.arange(0, BD)
    runs = tl.cdiv(count, T)
    return tl.cast(i // BLOCKS // runs, tl.int64), i // BLOCKS % runs, o_d, o_d < D
