"""Which weights a run takes: of the model, of its tokenizers and its vocabularies.

Everything is checked against the files' headers; nothing is loaded here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from terramind_cube.inference.runtime import Compute, ModelSpec, WeightsFile, load_vocabulary
from terramind_cube.modalities import MODALITIES, V1_STATISTICS
from terramind_cube.model.loading import inspect_model_weights, inspect_tokenizer_weights
from terramind_cube.model.variants import (
    MODELS,
    TOKENIZERS,
    ModelDescription,
    TokenizerDescription,
    TokenSpace,
    describe_model,
    describe_tokenizer,
)
from terramind_cube.model.weights import file_sha256, resolve_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terramind_cube.inference.settings import TokenizerWeights, Weights
    from terramind_cube.modalities import Statistics

__all__ = ["Needs", "WeightsChoice", "choose_model"]

WORDS = ("pretrained", "untrained")


@dataclass(frozen=True)
class Needs:
    """What a run needs besides the transformer.

    Attributes
    ----------
    decoded, encoded : tuple of str
        Modalities whose tokenizers decode and encode.
    sequences : tuple of str
        Sequences that are read or generated.
    transformer : bool
        Whether the transformer itself is needed.
    """

    decoded: tuple[str, ...] = ()
    encoded: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    transformer: bool = True


@dataclass(frozen=True)
class WeightsChoice:
    """A user's weights: paths or "pretrained", None for untrained ones.

    Tokenizers are a mapping by modality, or one word for all of them: "pretrained", or "untrained",
    which a model with weights takes only where it is said. None goes with the model: "pretrained"
    beside pretrained weights, untrained beside none.
    """

    name: str
    weights: Weights | None = None
    tokenizers: TokenizerWeights | None = None
    vocabularies: Mapping[str, Weights] | None = None
    extensions: tuple[tuple[str, Statistics], ...] = ()

    def __post_init__(self) -> None:
        given = self.tokenizers
        if given is not None and given not in WORDS and not isinstance(given, Mapping):
            raise ValueError(
                f"tokenizer_weights={given!r}: give a path for each modality, such as "
                f"{{'LULC': {str(given)!r}}}, or 'pretrained' or 'untrained' for all of them."
            )

    def of_tokenizers(self, wanted: Sequence[str], *, released: bool) -> dict[str, Weights]:
        """Return the weights of every tokenizer that a run needs, by modality.

        `released` says whether there are pretrained ones.

        Raises
        ------
        ValueError
            If one is named that is not needed, or has no weights beside others that have.
        """
        given = self.tokenizers
        if isinstance(given, str):
            return dict.fromkeys(wanted, given)
        found = dict(given or {})
        unused = sorted(set(found) - set(wanted))
        if unused:
            raise ValueError(
                f"tokenizer_weights names {', '.join(unused)}, which is no output and no input "
                "that is read as tokens."
            )
        rest = [name for name in wanted if name not in found]
        trained = [name for name, weights in found.items() if weights != "untrained"]
        if self.weights == "pretrained":
            found |= dict.fromkeys(rest, "pretrained")
        elif rest and (self.weights is not None or trained):
            has = self.name if self.weights is not None else f"the tokenizer of {trained[0]}"
            others = "'pretrained' for the released ones, " if released else ""
            raise ValueError(
                f"{has} has weights, the tokenizer of {', '.join(rest)} has none and would turn "
                f"tokens and pixels into each other by random numbers: give "
                f"tokenizer_weights={{{rest[0]!r}: path}}, {others}or 'untrained' to try things out."
            )
        return {name: found.get(name, "untrained") for name in wanted}


def choose_model(
    choice: WeightsChoice, needs: Needs, compute: Compute
) -> tuple[ModelSpec, ModelDescription]:
    """Check a user's choice of weights against the files' headers, without loading them.

    Parameters
    ----------
    choice : WeightsChoice
    needs : Needs
    compute : Compute

    Returns
    -------
    spec : ModelSpec
    description : ModelDescription

    Raises
    ------
    ValueError, FileNotFoundError, WeightsError
        If a name is unknown, a file is absent, damaged or of another model, an output cannot be
        generated, a tokenizer speaks other tokens than the model, or a vocabulary is missing.
    """
    name = choice.name
    description = describe_model(name)
    file = WeightsFile()
    if choice.weights is not None:
        path = resolve_weights(choice.weights, pretrained=MODELS[name].pretrained, name=name)
        description = inspect_model_weights(name, path)
        file = WeightsFile(str(path), file_sha256(path))
    for modality, statistics in choice.extensions:
        description = description.with_modality(modality, statistics)
    wanted = tuple(dict.fromkeys((*needs.decoded, *needs.encoded)))
    tokenizers = []
    for modality in wanted:
        _token_space(description, modality)
    rows = [TOKENIZERS.get((description.tokenizers, modality)) for modality in wanted]
    released = any(row is not None and row.pretrained is not None for row in rows)
    for modality, weights in choice.of_tokenizers(wanted, released=released).items():
        row, tokenizer_file = _choose_tokenizer(modality, description, weights)
        _check_tokens(description, row)
        tokenizers.append((modality, tokenizer_file))
    if needs.transformer and choice.weights is None:
        _tell_untrained(name, tokenizers)
    vocabularies = _choose_vocabularies(choice, needs, description)
    spec = ModelSpec(
        name,
        file if needs.transformer else None,
        tuple(tokenizers),
        vocabularies,
        description.tokenizers,
        compute,
        choice.extensions,
    )
    return spec, description


def _tell_untrained(name: str, tokenizers: Sequence[tuple[str, WeightsFile]]) -> None:
    trained = [modality for modality, file in tokenizers if file.path is not None]
    if trained:
        warnings.warn(
            f"{name} is untrained beside the trained tokenizer of {', '.join(trained)}: what it "
            "generates means nothing. Give weights=PATH or weights='pretrained'.",
            stacklevel=2,
        )


def _choose_tokenizer(
    modality: str, model: ModelDescription, weights: Weights
) -> tuple[TokenizerDescription, WeightsFile]:
    row = describe_tokenizer(modality, model.tokenizers)
    if weights == "untrained":
        return row, WeightsFile()
    path = resolve_weights(weights, pretrained=row.pretrained, name=f"the {modality} tokenizer")
    row = inspect_tokenizer_weights(modality, path, family=model.tokenizers)
    return row, WeightsFile(str(path), file_sha256(path))


def _choose_vocabularies(
    choice: WeightsChoice, needs: Needs, description: ModelDescription
) -> tuple[tuple[str, WeightsFile], ...]:
    given = dict(choice.vocabularies or {})
    unused = sorted(set(given) - set(needs.sequences))
    if unused:
        raise ValueError(f"vocabularies names {', '.join(unused)}, which is no input or output.")
    chosen = []
    for name in needs.sequences:
        space = description.token_space(name)
        if space is None:
            raise ValueError(
                f"{description.name} knows no {name}: it has no tokens of them. "
                "Captions belong to the unreleased v0.1 model."
            )
        file = WeightsFile(None, "bundled")
        if name in given:
            path = Path(given[name]).expanduser().absolute()
            if not path.is_file():
                raise FileNotFoundError(f"No vocabulary of {name} at {path}.")
            file = WeightsFile(str(path), file_sha256(path))
        elif name == "Captions":
            raise ValueError(
                "Captions need a vocabulary: give vocabularies={'Captions': path} with the "
                "WordPiece file of the model."
            )
        elif choice.weights == "pretrained":
            warnings.warn(
                f"{name}: the bundled vocabulary need not be that of the released weights; give "
                f"vocabularies={{{name!r}: path}} with the file that was released with them.",
                stacklevel=2,
            )
        load_vocabulary(name, file).check_fits(space.vocabulary)
        chosen.append((name, file))
    return tuple(chosen)


def _check_tokens(model: ModelDescription, tokenizer: TokenizerDescription) -> None:
    space = _token_space(model, tokenizer.modality)
    theirs = (tokenizer.vocabulary, tokenizer.patch_px)
    ours = (space.vocabulary, model.patch_px)
    if theirs == ours and MODALITIES[tokenizer.modality].kind == "image":
        name = tokenizer.modality
        if (tokenizer.statistics or V1_STATISTICS[name]) != model.statistics[name]:
            raise ValueError(
                f"{model.name} and the {name} tokenizer were trained with different means and "
                "standard deviations: give weights that belong together."
            )
    if theirs != ours:
        raise ValueError(
            f"{model.name} and the {tokenizer.modality} tokenizer speak different tokens: "
            f"vocabulary and patch are {ours} and {theirs}."
        )


def _token_space(model: ModelDescription, modality: str) -> TokenSpace:
    space = model.token_space(modality)
    if space is None:
        known = ", ".join(row.modality for row in model.token_spaces)
        raise ValueError(f"{model.name} knows no tokens of {modality}; it knows those of {known}.")
    return space
