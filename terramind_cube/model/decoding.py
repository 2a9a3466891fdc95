"""Generating grids of tokens: in one step, or in several that see what was decided before.

ROAR decodes a random part of the grid at every step (arXiv 2312.06647), MaskGIT the most confident
part (arXiv 2202.04200). The tokens decided so far are inputs of the encoder at the next step.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from terramind_cube.model.embeddings import VisibleTokens
from terramind_cube.model.generation import Sampling, sample_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.model.conditions import Conditions
    from terramind_cube.model.quantizer import FiniteScalarQuantizer

__all__ = ["Decoding", "Draw", "TokenGrid", "generate_grid"]

Scheme = Literal["roar", "maskgit"]
Schedule = Literal["cosine", "linear"]


@dataclass(frozen=True)
class Decoding:
    """How a token grid is decided.

    Attributes
    ----------
    sampling : Sampling
    steps : int
        1 decides every token at once, each without seeing the others.
    scheme : {"roar", "maskgit"}
        What a step decides: a random part of the rest, or the most confident part.
    schedule : {"cosine", "linear"}
        How many tokens a step decides: few at first and many at the end, or equally many.
    temperature_schedule : str
        ``"constant"``, ``"linear"`` (falls with the share of undecided tokens) or
        ``"onex:MIN:POWER"`` (falls to MIN as one over a power).
    is_soft : bool
        Whether decoders get the expected code instead of that of the drawn token.
    """

    sampling: Sampling = field(default_factory=Sampling)
    steps: int = 1
    scheme: Scheme = "roar"
    schedule: Schedule = "cosine"
    temperature_schedule: str = "constant"
    is_soft: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"decoding_steps must be at least 1, got {self.steps}.")
        for what, value, known in (
            ("scheme", self.scheme, ("roar", "maskgit")),
            ("schedule", self.schedule, ("cosine", "linear")),
        ):
            if value not in known:
                raise ValueError(f"Unknown {what} {value!r}: give one of {', '.join(known)}.")
        self.temperatures([1])

    def counts(self, cells: int) -> list[int]:
        """Return how many of a grid's cells every step decides; at least one each.

        Raises
        ------
        ValueError
            If there are more steps than cells.
        """
        if self.steps > cells:
            raise ValueError(f"decoding_steps={self.steps}: the grid has {cells} tokens only.")
        share = np.arange(self.steps + 1) / self.steps
        passed = share if self.schedule == "linear" else 1 - np.cos(share * np.pi / 2)
        edges = np.floor(passed * cells + 0.5).astype(int)
        # Every step decides something, and leaves something to every step after it.
        for i in range(1, self.steps):
            edges[i] = min(max(edges[i], edges[i - 1] + 1), cells - (self.steps - i))
        return [int(count) for count in np.diff(edges)]

    def temperatures(self, counts: list[int]) -> list[float]:
        """Return the temperature of every step.

        Raises
        ------
        ValueError
            If the schedule is unknown or its numbers are senseless.
        """
        start, total = self.sampling.temperature, sum(counts)
        decided = [sum(counts[:i]) / total for i in range(len(counts))]
        if self.temperature_schedule == "constant":
            return [start] * len(counts)
        if self.temperature_schedule == "linear":
            return [start * (1 - share) for share in decided]
        kind, *numbers = self.temperature_schedule.split(":")
        try:
            end, power = map(float, numbers)
        except ValueError:
            end, power = math.nan, math.nan
        is_falling = 0 <= end <= start and end < math.inf and 0 < power < math.inf
        if kind != "onex" or not is_falling:
            raise ValueError(
                f"temperature_schedule={self.temperature_schedule!r}: give 'constant', 'linear' or "
                f"'onex:MIN:POWER' with a minimum from 0 to the temperature, here {start}, and a "
                "positive power."
            )
        last = 100.0**-power
        falls = [((1 + 99 * share) ** -power - last) / (1 - last) for share in decided]
        return [end + (start - end) * fall for fall in falls]


class Draw(Protocol):
    """Random numbers of a batch of tiles, which depend on world cell, sample and step alone."""

    def tokens(self, step: int, width: int, positions: NDArray[np.int64] | None) -> Tensor:
        """Return uniform numbers (B, n, width) of the cells at positions (B, n), None for all."""
        ...

    def order(self) -> NDArray[np.float32]:
        """Return one uniform number per cell, (B, N)."""
        ...


@dataclass(frozen=True)
class TokenGrid:
    """Generated tokens of a batch of tiles.

    Attributes
    ----------
    ids : torch.Tensor
        (B, h, w), int64.
    confidence : torch.Tensor
        Probability that the model gave each token when it was drawn, (B, h, w), float32.
    codes : torch.Tensor
        What a decoder gets, (B, L, h, w), float32: those of the ids, or the expected ones.
    """

    ids: Tensor
    confidence: Tensor
    codes: Tensor


@torch.inference_mode()
def generate_grid(
    conditions: Conditions,
    target: str,
    decoding: Decoding,
    draw: Draw,
    quantizer: FiniteScalarQuantizer,
) -> TokenGrid:
    """Generate a target's tokens for a batch of tiles.

    Parameters
    ----------
    conditions : Conditions
    target : str
        Modality of a token grid.
    decoding : Decoding
    draw : Draw
        Random numbers.
    quantizer : FiniteScalarQuantizer
        Of the target.

    Returns
    -------
    TokenGrid
    """
    rows, cols = conditions.grid
    steps = _Steps(target, decoding, draw, quantizer)
    ids, confidence, codes = (
        steps.at_once(conditions) if decoding.steps == 1 else steps.one_by_one(conditions)
    )
    codes = codes.transpose(1, 2).unflatten(2, (rows, cols))
    return TokenGrid(ids.view(-1, rows, cols), confidence.view(-1, rows, cols), codes)


@dataclass(frozen=True)
class _Steps:
    """The steps of one grid; tokens of n cells are ids (B, n), confidence (B, n), codes (B, n, L)."""

    target: str
    decoding: Decoding
    draw: Draw
    quantizer: FiniteScalarQuantizer

    def at_once(self, conditions: Conditions) -> tuple[Tensor, Tensor, Tensor]:
        logits = conditions.logits(self.target)
        return self._pick(logits, self.decoding.sampling, step=0)

    def one_by_one(self, conditions: Conditions) -> tuple[Tensor, Tensor, Tensor]:
        rows, cols = conditions.grid
        batch, cells = conditions.batch, rows * cols
        device = conditions.encodings[0].tokens.device
        counts = self.decoding.counts(cells)
        ids = torch.zeros((batch, cells), dtype=torch.int64, device=device)
        confidence = torch.zeros((batch, cells), device=device)
        codes = torch.zeros((batch, cells, len(self.quantizer.levels)), device=device)
        # Decided cells in the order of their decision, then the others.
        order = self._first_order(batch, cells)
        decided = 0
        for step, (count, temperature) in enumerate(
            zip(counts, self.decoding.temperatures(counts), strict=True)
        ):
            seen = conditions
            if decided:
                known = torch.from_numpy(order[:, :decided]).to(device)
                visible = VisibleTokens(ids.gather(1, known), known, rows, cols)
                seen = conditions.joined(conditions.model.embed({self.target: visible}))
            sampling = dataclasses.replace(self.decoding.sampling, temperature=temperature)
            is_confident = self.decoding.scheme == "maskgit"
            candidates = order[:, decided:] if is_confident else order[:, decided : decided + count]
            positions = torch.from_numpy(candidates).to(device)
            # The first step of MaskGIT looks at every cell, in their own order.
            everything = is_confident and decided == 0
            logits = seen.logits(self.target, None if everything else positions)
            picked = self._pick(logits, sampling, step, None if everything else candidates)
            if is_confident:
                best = picked[1].topk(count, dim=1).indices
                positions = positions.gather(1, best)
                picked = (
                    picked[0].gather(1, best),
                    picked[1].gather(1, best),
                    picked[2].gather(1, best[..., None].expand(-1, -1, codes.shape[-1])),
                )
                order = _move_forward(order, decided, positions.cpu().numpy())
            ids.scatter_(1, positions, picked[0])
            confidence.scatter_(1, positions, picked[1])
            codes.scatter_(1, positions[..., None].expand(-1, -1, codes.shape[-1]), picked[2])
            decided += count
        return ids, confidence, codes

    def _first_order(self, batch: int, cells: int) -> NDArray[np.int64]:
        if self.decoding.scheme == "maskgit":
            return np.broadcast_to(np.arange(cells), (batch, cells)).copy()
        return np.argsort(self.draw.order(), axis=1, kind="stable")

    def _pick(
        self,
        logits: Tensor,
        sampling: Sampling,
        step: int,
        positions: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the tokens of the cells that the logits (B, n, V) are of."""
        uniform = None
        if sampling.is_random:
            uniform = self.draw.tokens(step, logits.shape[-1], positions)
        ids = sample_tokens(logits, sampling, uniform)
        chosen = logits.gather(2, ids[..., None])[..., 0]
        confidence = (chosen - logits.logsumexp(dim=-1)).exp()
        if self.decoding.is_soft:
            codes = self.quantizer.expected_codes(logits.softmax(dim=-1))
        else:
            codes = self.quantizer.dequantize(ids[:, None])[:, :, 0].transpose(1, 2)
        return ids, confidence, codes


def _move_forward(
    order: NDArray[np.int64], decided: int, positions: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Put newly decided positions (B, n) behind the `decided` ones, the rest behind them."""
    rest = [
        row[decided:][~np.isin(row[decided:], now)]
        for row, now in zip(order, positions, strict=True)
    ]
    return np.concatenate([order[:, :decided], positions, np.stack(rest)], axis=1)
