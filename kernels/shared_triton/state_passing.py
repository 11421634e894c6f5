"""States from chunk to chunk, and adjoints against time (Mamba-2's `state_passing`)."""

import triton
import triton.language as tl


@triton.jit
def _enter_chunk(h, A, i_chunk, i_n, o_d, p_sums, p_states, D: tl.constexpr, N: tl.constexpr):
    """Exchange a chunk's own share for `h`, which enters it; returns what leaves it: `2^(A sum) h + share`."""
    m_d = o_d < D
    p_state = p_states + (i_chunk * N + i_n) * D + o_d
    share = tl.load(p_state, mask=m_d, other=0.0)  # (BD,)
    total = tl.load(p_sums + i_chunk * D + o_d, mask=m_d, other=0.0)  # (BD,)
    tl.store(p_state, h, mask=m_d)
    return tl.exp2(A * total) * h + share


@triton.jit
def _lane(p_A, K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, BD: tl.constexpr):
    """State, walk, image and channels of a program, and A `(BD,)`."""
    i = tl.program_id(0)
    BLOCKS: tl.constexpr = (D + BD - 1) // BD  # of Triton 3.6's `cdiv` no product could be taken
    o_d = i % BLOCKS * BD + tl.arange(0, BD)
    i_k = i // BLOCKS % K
    i_n = i // (BLOCKS * K) % N
    i_b = i // (BLOCKS * K) // N
    A = tl.load(p_A + (i_k * D + o_d) * N + i_n, mask=o_d < D, other=0.0)  # (BD,)
    return i_n, i_k, i_b.to(tl.int64), o_d, A


@triton.jit(do_not_specialize=['chunks'])
def state_passing(
    p_A, p_sums, p_states, chunks, K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Turn `states (B, chunks, K, N, D)` from what a chunk adds into what enters it at its start, in place.

    `h_0 = 0, h_{c+1} = 2^(A sums_c) h_c + states_c` with `sums (B, chunks, K, D)` of the time steps.
    """
    i_n, i_k, i_b, o_d, A = _lane(p_A, K, D, N, BD)
    h = tl.zeros((BD,), tl.float32)
    for i_c in range(chunks):
        h = _enter_chunk(h, A, (i_b * chunks + i_c) * K + i_k, i_n, o_d, p_sums, p_states, D, N)


@triton.jit(do_not_specialize=['chunks'])
def reverse_state_passing(
    p_A, p_sums, p_states, chunks, K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """As `state_passing` for adjoints, which enter a chunk at its end and leave it at its start."""
    i_n, i_k, i_b, o_d, A = _lane(p_A, K, D, N, BD)
    h = tl.zeros((BD,), tl.float32)
    for i in range(chunks):
        i_chunk = (i_b * chunks + (chunks - 1 - i)) * K + i_k
        h = _enter_chunk(h, A, i_chunk, i_n, o_d, p_sums, p_states, D, N)
