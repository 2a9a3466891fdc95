"""Generating sequences: coordinates as a distribution over cells, captions word by word.

A sequence starts with one sentinel, each token predicts the next one, and another sentinel ends it,
as in the released models. Keys and values of the tokens before are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from terramind_cube.model.embeddings import SequenceTarget
from terramind_cube.model.generation import Sampling, sample_tokens
from terramind_cube.model.layers import KeyValueCache

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.model.conditions import Conditions

__all__ = ["CoordinateCells", "SequenceDecoder", "generate_sequence", "rank_coordinates"]

START, STOP = 5, 6  # the sentinels [S_1] and [S_2]


class SequenceDecoder:
    """Logits of a sequence's next token, one token after another.

    Parameters
    ----------
    conditions : Conditions
    target : str
        Modality of a sequence.

    Raises
    ------
    ValueError
        If the model generates no such sequence.
    """

    def __init__(self, conditions: Conditions, target: str) -> None:
        model = conditions.model
        space = model.description.token_space(target)
        if space is None or space.kind != "sequence":
            raise ValueError(f"{model.description.name} generates no sequence {target!r}.")
        self.conditions = conditions
        head = model.decoder_embeddings[space.key]
        assert isinstance(head, SequenceTarget)
        self.head = head
        self.length = 0
        # Projected once, at the first step; a cache keeps what each block made of it.
        self.contexts = [model.context(one) for one in conditions.encodings]
        self.caches = [[KeyValueCache() for _ in model.decoder] for _ in self.contexts]

    @torch.inference_mode()
    def step(self, ids: Tensor) -> Tensor:
        """Append tokens (B,), int64, and return the logits (B, V) of what follows."""
        model = self.conditions.model
        embedding = self.head.pos_emb[:, self.length : self.length + 1] + self.head.mod_emb
        self.length += 1
        logits = []
        for context, caches in zip(self.contexts, self.caches, strict=True):
            x = self.head.token_emb(ids[:, None]).float() + embedding  # (B, 1, D)
            for block, cache in zip(model.decoder, caches, strict=True):
                x = block(x, context, cache)
            logits.append(self.head.to_logits(model.decoder_norm(x))[:, 0].float())
        return self.conditions.combine(logits)

    def repeat(self, times: int) -> None:
        """Go on with several continuations of every sequence, next to one another."""
        for caches in self.caches:
            for cache in caches:
                cache.repeat(times)


@dataclass(frozen=True)
class CoordinateCells:
    """The most probable cells of a batch of tiles.

    Attributes
    ----------
    probability : torch.Tensor
        (B, k), float32, falling; of all cells together it is 1.
    latitude, longitude : torch.Tensor
        Places in the vocabulary's tables, (B, k), int64.
    """

    probability: Tensor
    latitude: Tensor
    longitude: Tensor


def rank_coordinates(
    conditions: Conditions,
    tables: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    count: int,
    beam: int = 32,
    start: int = START,
) -> CoordinateCells:
    """Rank cells by ``p(latitude) * p(longitude | latitude)``.

    Parameters
    ----------
    conditions : Conditions
    tables : pair of numpy.ndarray
        Token ids of the latitudes and of the longitudes, -1 where there is none; any other token
        is left out.
    count : int
        Cells to return.
    beam : int
        The most probable latitudes, whose longitudes are looked at.
    start : int
        Id of the sentinel that a sequence starts with.

    Returns
    -------
    CoordinateCells
    """
    decoder = SequenceDecoder(conditions, "Coordinates")
    device = decoder.contexts[0].device
    batch = len(decoder.contexts[0])
    latitudes, longitudes = (torch.tensor(table, device=device) for table in tables)
    beam = min(beam, len(latitudes))
    begin = torch.full((batch,), start, device=device)
    first = _log_share(decoder.step(begin), latitudes).topk(beam, dim=1)
    decoder.repeat(beam)
    chosen = latitudes[first.indices].clamp_min(0).flatten()
    second = _log_share(decoder.step(chosen), longitudes)
    joint = first.values[:, :, None] + second.view(batch, beam, -1)
    best = joint.flatten(1).topk(min(count, joint[0].numel()), dim=1)
    row = best.indices // len(longitudes)
    return CoordinateCells(
        best.values.exp(), first.indices.gather(1, row), best.indices % len(longitudes)
    )


def _log_share(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the logarithm of the probabilities of some ids among themselves, (B, n)."""
    return logits[:, ids.clamp_min(0)].masked_fill(ids < 0, -torch.inf).log_softmax(dim=1)


def generate_sequence(
    conditions: Conditions,
    target: str,
    sampling: Sampling,
    draw: Callable[[int, int], Tensor],
    *,
    max_length: int,
    start: int = START,
    stops: tuple[int, ...] = (STOP,),
) -> Tensor:
    """Draw a sequence token by token.

    Parameters
    ----------
    conditions : Conditions
    target : str
        Modality of a sequence.
    sampling : Sampling
    draw : callable
        Returns uniform numbers (B, width) for a step, called as ``draw(step, width)``.
    max_length : int
        Tokens at most.
    start : int
        Id of the sentinel that a sequence starts with.
    stops : tuple of int
        Ids after which a sequence is over.

    Returns
    -------
    torch.Tensor
        Ids (B, L), int64, L at most `max_length`; after its stop a sequence repeats the stop.
    """
    decoder = SequenceDecoder(conditions, target)
    device = decoder.contexts[0].device
    ids = torch.full((len(decoder.contexts[0]),), start, device=device)
    is_over = torch.zeros_like(ids, dtype=torch.bool)
    ends = torch.tensor(stops, device=device)
    found = []
    for step in range(max_length):
        logits = decoder.step(ids)
        uniform = draw(step, logits.shape[-1])[:, None] if sampling.is_random else None
        following = sample_tokens(logits[:, None], sampling, uniform)[:, 0]
        ids = torch.where(is_over, ends[0], following)
        found.append(ids)
        is_over |= torch.isin(ids, ends)
        if bool(is_over.all()):
            break
    return torch.stack(found, dim=1)
