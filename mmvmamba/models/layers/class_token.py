"""The class token of Vim and its kin, which stands in the middle of the patches' sequence."""

import torch


def token_place(length: int) -> int:
    """The class token's place in a sequence of `length`, itself included."""
    return (length - 1) // 2


def split_token(sequence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B, L + 1, C)` to its patches `(B, L, C)` and its class token `(B, 1, C)`."""
    place = token_place(sequence.shape[1])
    return torch.cat([sequence[:, :place], sequence[:, place + 1 :]], dim=1), sequence[:, place : place + 1]


def insert_token(patches: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Undo `split_token`; the token `(1 or B, 1, C)` takes the patches' batch and dtype."""
    place = token_place(patches.shape[1] + 1)
    token = token.to(patches.dtype).expand(len(patches), -1, -1)
    return torch.cat([patches[:, :place], token, patches[:, place:]], dim=1)
