"""Position t predicts token t + k: the only place where predictions and labels are aligned along time."""

import torch


def predictions_at(x: torch.Tensor, offset: int) -> torch.Tensor:
    """What positions 0 .. T - offset - 1 predict: x[:, :T - offset]. x: (batch, T, ...); offset k >= 1."""
    return x[:, : _length(x, offset)]


def labels_at(x: torch.Tensor, offset: int) -> torch.Tensor:
    """The tokens those positions speak of, aligned with `predictions_at`: x[:, offset:]. x: (batch, T, ...)."""
    _length(x, offset)
    return x[:, offset:]


def labels_of(tokens: torch.Tensor, positions: torch.Tensor, offset: int) -> torch.Tensor:
    """Token t + offset of every True in `positions`. tokens, positions: (batch, T); returns (positions.sum(),)."""
    return labels_at(tokens, offset)[predictions_at(positions, offset)]


def _length(x: torch.Tensor, offset: int) -> int:
    if not 1 <= offset < x.shape[1]:
        raise ValueError(f"offset={offset} must lie between 1 and the sequence's length - 1 = {x.shape[1] - 1}")
    return x.shape[1] - offset
