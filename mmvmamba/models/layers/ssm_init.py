"""Initial values of state-space parameters, as tensors of the default dtype, computed in float32 at least.

Source: Gu and Dao, arXiv 2312.00752 (the Mamba scheme); Liu et al., arXiv 2401.10166, appendix (Rand and Zero).
"""

import math

import torch

SSM_INITS = ('mamba', 'rand', 'zero')


def a_logs(scheme: str, channels: int, states: int) -> torch.Tensor:
    """`(channels, states)`: log of the decay rates; 'mamba' is log(1..N) in every channel."""
    if scheme == 'mamba':
        return _narrow(torch.arange(1, states + 1, dtype=_wide()).log()).repeat(channels, 1)
    return torch.randn(channels, states) if scheme == 'rand' else torch.zeros(channels, states)


def dt_weight(scheme: str, routes: int, channels: int, rank: int) -> torch.Tensor:
    """`(routes, channels, rank)`: the step projection; 'mamba' keeps the variance of its `rank` inputs."""
    if scheme == 'mamba':
        bound = rank**-0.5
        return torch.empty(routes, channels, rank).uniform_(-bound, bound)
    return 0.1 * (torch.randn if scheme == 'rand' else torch.rand)(routes, channels, rank)


def dt_bias(scheme: str, routes: int, channels: int, dt_min=1e-3, dt_max=0.1, dt_floor=1e-4) -> torch.Tensor:
    """`(routes, channels)`: the step's bias; 'mamba' makes softplus(bias) log-uniform between `dt_min` and `dt_max`."""
    if scheme == 'mamba':
        uniform = torch.rand(routes, channels, dtype=_wide())
        log_dt = uniform * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
        dt = log_dt.exp().clamp(min=dt_floor)
        return _narrow(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
    return 0.1 * (torch.randn if scheme == 'rand' else torch.rand)(routes, channels)


def _wide() -> torch.dtype:
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def _narrow(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.get_default_dtype())
