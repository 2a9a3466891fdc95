"""What a generation is conditioned on: the inputs, what was generated before, and guidance.

Classifier-free guidance (arXiv 2207.12598) moves the logits from those without some inputs towards,
and beyond, those with them; with a weight per input it composes (arXiv 2206.01714).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from terramind_cube.model.transformer import Embedded, Encoded, TerraMind

__all__ = ["Conditions", "Guidance"]


@dataclass(frozen=True)
class Guidance:
    """Weights of classifier-free guidance.

    The logits are ``base + sum(weight * (with_group - base))``, where `base` sees only the inputs
    that no group names (nothing at all, if every input is named) and `with_group` those and one
    group.

    Attributes
    ----------
    groups : tuple of (tuple of str, float)
        Inputs that are guided together, and their weight: 1 is what the model says, more
        exaggerates it, 0 leaves the inputs out. Empty for no guidance.
    """

    groups: tuple[tuple[tuple[str, ...], float], ...] = ()

    @classmethod
    def parse(cls, guidance: float | Mapping[str, float] | None, inputs: Sequence[str]) -> Guidance:
        """Read a user's guidance.

        Parameters
        ----------
        guidance : float, mapping of str to float, or None
            One weight for all inputs together, or one for each that is named.
        inputs : sequence of str
            The inputs there are.

        Raises
        ------
        ValueError
            If a weight is negative or no number, a name is no input, or nothing is left to
            condition on.
        """
        if guidance is None:
            return cls()
        named = dict(guidance) if isinstance(guidance, Mapping) else dict.fromkeys(inputs, guidance)
        for name, weight in named.items():
            if not 0 <= weight < math.inf:
                place = f" of {name}" if isinstance(guidance, Mapping) else ""
                raise ValueError(f"guidance{place} must be a weight from 0 upwards, got {weight}.")
        unknown = [name for name in named if name not in inputs]
        if unknown:
            raise ValueError(
                f"guidance names {', '.join(unknown)}, which is no input; "
                f"the inputs are {', '.join(inputs)}."
            )
        if not named or (not any(named.values()) and len(named) == len(inputs)):
            raise ValueError(
                "guidance contradicts itself: with no weight above 0 every input is ignored. "
                "Leave it out for none."
            )
        if isinstance(guidance, Mapping):
            return cls(tuple(((name,), float(weight)) for name, weight in named.items()))
        # A weight of 1 for everything is the model itself.
        return cls() if guidance == 1 else cls(((tuple(inputs), float(guidance)),))

    def split(self, inputs: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """Return the inputs of every condition that is encoded, the base first."""
        if not self.groups:
            return (tuple(inputs),)
        guided = {name for group, _ in self.groups for name in group}
        base = tuple(name for name in inputs if name not in guided)
        return (base, *((*base, *group) for group, _ in self.groups))


class Conditions:
    """Inputs as vectors, once per condition of the guidance, encoded when first needed.

    Parameters
    ----------
    model : TerraMind
    embedded : sequence of Embedded or None
        One per condition, see `Guidance.split`; None sees nothing.
    guidance : Guidance
    """

    def __init__(
        self, model: TerraMind, embedded: Sequence[Embedded | None], guidance: Guidance
    ) -> None:
        self.model = model
        self.embedded = tuple(embedded)
        self.guidance = guidance
        self.keeps_logits = True
        self._logits: dict[str, Tensor] = {}

    @classmethod
    def of_inputs(
        cls, model: TerraMind, inputs: Mapping[str, Tensor], guidance: Guidance
    ) -> Conditions:
        """Embed inputs (see `TerraMind.encode_inputs`) for every condition."""
        rows, cols = model.common_grid(inputs)
        parts = {
            # Alone, a sequence would take the grid of pretraining.
            name: replace(model.embed({name: values}), rows=rows, cols=cols)
            for name, values in inputs.items()
        }
        embedded = [
            _join([parts[name] for name in names]) for names in guidance.split(list(inputs))
        ]
        return cls(model, embedded, guidance)

    def joined(self, further: Embedded) -> Conditions:
        """Return conditions that also see `further`, every one of them."""
        rows, cols = self.grid
        further = replace(further, rows=rows, cols=cols)
        joined = [further if one is None else one + further for one in self.embedded]
        return Conditions(self.model, joined, self.guidance)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        shape = next(one for one in self.embedded if one is not None)
        return shape.rows, shape.cols

    @property
    def batch(self) -> int:
        """Number of tiles."""
        return len(next(one for one in self.embedded if one is not None).content)

    @cached_property
    def encodings(self) -> tuple[Encoded, ...]:
        """Encoder output of every condition."""
        encoded = [
            None if one is None else self.model.encode_embedded(one) for one in self.embedded
        ]
        seen = next(one for one in encoded if one is not None)
        return tuple(self.model.unconditional(like=seen) if one is None else one for one in encoded)

    def logits(self, target: str, positions: Tensor | None = None) -> Tensor:
        """Return the guided logits of a target's positions, (B, n, V); see `TerraMind.decode`.

        Those of all positions are kept, unless `keeps_logits` is off: an ensemble draws from them
        again and again.
        """
        if positions is not None:
            return self.combine(
                [self.model.decode(one, target, positions) for one in self.encodings]
            )
        if target in self._logits:
            return self._logits[target]
        logits = self.combine([self.model.decode(one, target) for one in self.encodings])
        if self.keeps_logits:
            self._logits[target] = logits
        return logits

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the guided logits from those of every condition."""
        base = logits[0]
        if not self.guidance.groups:
            return base
        steps = [
            weight * (one - base)
            for one, (_, weight) in zip(logits[1:], self.guidance.groups, strict=True)
        ]
        return base + torch.stack(steps).sum(dim=0)


def _join(parts: Sequence[Embedded]) -> Embedded | None:
    joined: Embedded | None = None
    for part in parts:
        joined = part if joined is None else joined + part
    return joined
