"""From logits to token ids: temperature, nucleus and the random numbers of each cell.

Sampling is the exponential race: with E_i exponential, argmax p_i / E_i is distributed as p. It
needs no sort, and a small change of p changes the winner with a small probability only, so that
overlapping tiles which share a cell's numbers mostly agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Sampling", "sample_tokens"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes
    ----------
    temperature : float
        Divides the logits; 0 takes the most probable token.
    top_p : float
        Nucleus: only the most probable tokens up to this total probability (before the
        temperature), and the one that passes it, can be drawn; 1 keeps all.
    top_k : int
        Only the k most probable tokens can be drawn; 0 keeps all.
    """

    temperature: float = 1.0
    top_p: float = 0.8
    top_k: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}.")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}.")

    @property
    def is_random(self) -> bool:
        """Whether sampling needs random numbers."""
        return self.temperature > 0


def sample_tokens(logits: Tensor, sampling: Sampling, uniform: Tensor | None = None) -> Tensor:
    """Draw one token per position.

    Parameters
    ----------
    logits : torch.Tensor
        (B, N, V), float32.
    sampling : Sampling
    uniform : torch.Tensor, optional
        Numbers in (0, 1) of the shape of `logits`; needed unless the temperature is 0. They are
        overwritten.

    Returns
    -------
    torch.Tensor
        Token ids (B, N), int64.

    Raises
    ------
    ValueError
        If random numbers are needed and absent, or of another shape.
    """
    if not sampling.is_random:
        return logits.argmax(dim=-1)
    if uniform is None or uniform.shape != logits.shape:
        raise ValueError(
            f"Sampling at temperature {sampling.temperature} needs uniform numbers "
            f"{tuple(logits.shape)}."
        )
    probability = logits.softmax(dim=-1)
    weight = probability
    if sampling.temperature != 1:
        weight = (logits / sampling.temperature).softmax(dim=-1)
    if 0 < sampling.top_k < logits.shape[-1]:
        weakest = probability.topk(sampling.top_k, dim=-1).values[..., -1:]
        weight = weight.where(probability >= weakest, 0)
    score = uniform.log_().neg_().reciprocal_().mul_(weight).flatten(0, -2)  # (B * N, V)
    winner = score.argmax(dim=-1)
    if sampling.top_p < 1:
        _reject_outside_nucleus(winner, score, probability.flatten(0, -2), sampling.top_p)
    return winner.view(logits.shape[:-1])


def _reject_outside_nucleus(
    winner: Tensor, score: Tensor, probability: Tensor, top_p: float
) -> None:
    """Replace winners outside the nucleus by the best inside it, without sorting.

    A token is inside when those more probable than it sum to at most `top_p`. If it is outside,
    so is every token that is no more probable, hence the race goes on among the others.
    """
    rows = torch.arange(len(winner), device=winner.device)
    while len(rows):
        own = probability.gather(1, winner[rows, None])
        above = probability > own
        is_outside = ((probability * above).sum(dim=1) > top_p) & above.any(dim=1)
        rows, probability, above = rows[is_outside], probability[is_outside], above[is_outside]
        score = score[is_outside].masked_fill_(~above, -torch.inf)
        winner[rows] = score.argmax(dim=1)
