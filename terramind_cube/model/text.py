"""Sequences as token ids: places on a quarter-degree grid, and captions in words.

A place is the text ``lat=12.25 lon=-3.50 [EOS]``, three ids. Its tokens are those of TerraTorch's
text_tokenizer.py; their ids come from the file that a model was trained with, or are bundled.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray

__all__ = ["CaptionVocabulary", "CoordinateVocabulary", "load_coordinate_vocabulary"]

_SPECIALS = ("[PAD]", "[UNK]", "[SOS]", "[EOS]", "[S_0]", "[S_1]", "[S_2]")
_CELLS_PER_DEGREE = 4
_LATITUDES = np.arange(-90 * _CELLS_PER_DEGREE, 90 * _CELLS_PER_DEGREE + 1) / _CELLS_PER_DEGREE
_LONGITUDES = np.arange(-180 * _CELLS_PER_DEGREE, 180 * _CELLS_PER_DEGREE + 1) / _CELLS_PER_DEGREE
_LATITUDES.flags.writeable = _LONGITUDES.flags.writeable = False
_CELLS = (*(f"lat={y:.2f}" for y in _LATITUDES), *(f"lon={x:.2f}" for x in _LONGITUDES))
_LISTED = 5


class _Vocabulary:
    """What both kinds know of their file."""

    def __init__(self, document: bytes, ids: Mapping[str, int], source: str) -> None:
        if len(set(ids.values())) < len(ids):
            raise ValueError(f"{source} gives several tokens the same id. Get the file again.")
        self._document = document
        self._source = source
        self.size: Final = 1 + max(ids.values(), default=-1)
        self.sha256: Final = hashlib.sha256(document).hexdigest()

    def check_fits(self, vocabulary: int) -> None:
        """Refuse the vocabulary if a model's table is too small for it.

        Parameters
        ----------
        vocabulary : int
            Rows of the model's embedding of this modality.

        Raises
        ------
        ValueError
            If an id has no row.
        """
        if self.size > vocabulary:
            raise ValueError(
                f"{self._source} has ids up to {self.size - 1}, but the model's table has "
                f"{vocabulary} rows. Pass the tokenizer file that the model was trained with."
            )


class CoordinateVocabulary(_Vocabulary):
    """Tokens of places on the 0.25 degree grid: 721 latitudes, 1441 longitudes, end of sequence.

    Made by `bundled` or `from_file`; immutable. A model needs the vocabulary that it was trained
    with: for the released ones that is their file.

    Attributes
    ----------
    latitudes, longitudes : numpy.ndarray, (721,) and (1441,) float64, degrees
        Of the tokens, from -90 to 90 and from -180 to 180, all included.
    latitude_ids, longitude_ids : numpy.ndarray, (721,) and (1441,) int64
        Their ids, in the same order; -1 where the file lacks one.
    eos, start : int
        Ids of the end of a sequence, and of the sentinel with which a generated one starts.
    size : int
        Largest id of the file, of a place or not, plus one.
    sha256 : str
        Of the file, in hexadecimal.
    """

    latitudes: Final = _LATITUDES
    longitudes: Final = _LONGITUDES

    def __init__(self, document: bytes, source: str) -> None:
        tokenizer = _parse(document, source)
        super().__init__(document, tokenizer.get_vocab(with_added_tokens=True), source)
        names = [*_CELLS, "[EOS]"]
        found = {name: _single_id(tokenizer, name) for name in names}
        ids = np.array([-1 if found[name] is None else found[name] for name in names], np.int64)
        ids.flags.writeable = False
        self.latitude_ids: Final = ids[: len(_LATITUDES)]
        self.longitude_ids: Final = ids[len(_LATITUDES) : -1]
        self.eos: Final = int(ids[-1])
        start = _single_id(tokenizer, "[S_1]")
        self.start: Final = _SPECIALS.index("[S_1]") if start is None else start
        # A vocabulary made from data may lack cells without data, never most of an axis.
        axes = (self.latitude_ids, self.longitude_ids)
        if self.eos < 0 or min((axis >= 0).mean() for axis in axes) < 0.5:
            _refuse_missing(source, [name for name in names if found[name] is None])
        row, column = (int(np.argmax(axis >= 0)) for axis in axes)
        text = f"{names[row]} {names[column + len(_LATITUDES)]} [EOS]"
        whole = tokenizer.encode(text).ids
        parts = [int(self.latitude_ids[row]), int(self.longitude_ids[column]), self.eos]
        if whole != parts:
            raise ValueError(
                f"{source} encodes {text!r} as ids {whole}, not as those of its three tokens, "
                f"{parts}. Pass a file that splits at spaces and adds nothing."
            )

    @classmethod
    def bundled(cls) -> CoordinateVocabulary:
        """Return the vocabulary of models that this package trains: specials, then the cells."""
        names = [*_SPECIALS, *_CELLS]
        # Written here and not by `tokenizers`, so that no version of it changes the SHA-256.
        document = {
            "version": "1.0",
            "added_tokens": [
                {"id": number, "content": name, "single_word": False, "lstrip": False,
                 "rstrip": False, "normalized": False, "special": True}
                for number, name in enumerate(_SPECIALS)
            ],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {
                "type": "WordLevel", "vocab": dict(zip(names, range(len(names)), strict=True)),
                "unk_token": "[UNK]",
            },
        }  # fmt: skip
        return cls(json.dumps(document).encode(), "The bundled coordinate vocabulary")

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> CoordinateVocabulary:
        """Read a JSON file of the `tokenizers` library.

        Parameters
        ----------
        path : path
            Such as the config.json of the released TerraMind-1.0-Tokenizer-Coords. Ids and order
            are free.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is no tokenizer, lacks ``[EOS]`` or most cells as tokens of their own, or gives
            the text of a place other ids than those three.
        """
        return cls(_read(path, "coordinate vocabulary"), str(path))

    def encode(self, longitude: ArrayLike, latitude: ArrayLike) -> NDArray[np.int64]:
        """Return the ids of places, each in its nearest cell.

        Degrees are rounded to quarters, halves to the even quarter, as TerraTorch does; unlike
        there, -0.1 is the token ``0.00``. Longitudes outside -180 .. 180 are wrapped; -180 and
        180, the same meridian, keep their own tokens.

        Parameters
        ----------
        longitude, latitude : array-like, degrees
            Numbers or arrays that broadcast.

        Returns
        -------
        numpy.ndarray, (n, 3) int64
            Latitude, longitude, end of sequence. One row for two numbers; arrays of more
            dimensions keep them, (..., 3).

        Raises
        ------
        ValueError
            If a value is no finite number, a latitude lies outside -90 .. 90, or the arrays do
            not broadcast.
        """
        east, north = _degrees("longitude", longitude), _degrees("latitude", latitude)
        east, north = np.broadcast_arrays(east, north)
        beyond = np.abs(north) > 90
        if beyond.any():
            at = np.argmax(beyond)
            hint = " Are longitude and latitude swapped?" if abs(east.flat[at]) <= 90 else ""
            raise ValueError(
                f"latitude must lie in -90 .. 90 degrees, got {north.flat[at]} beside longitude "
                f"{east.flat[at]} at position {at}.{hint}"
            )
        # Whole quarters are exact, and as integers they know no -0.0 and wrap without error.
        row = np.rint(north * _CELLS_PER_DEGREE).astype(np.int64)
        column = np.rint(np.fmod(east, 360) * _CELLS_PER_DEGREE).astype(np.int64)
        half = 180 * _CELLS_PER_DEGREE
        column = np.where(np.abs(column) > half, (column + half) % (2 * half) - half, column)
        cells = self.latitude_ids[row + half // 2], self.longitude_ids[column + half]
        if (absent := np.minimum(*cells) < 0).any():
            place = f"{east.flat[np.argmax(absent)]} {north.flat[np.argmax(absent)]}"
            raise ValueError(f"{self._source} has no token for the cell of {place} (lon lat).")
        return np.stack([*cells, np.full_like(row, self.eos)], axis=-1)

    def decode(self, ids: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the places of ids; what follows the first two is ignored.

        Parameters
        ----------
        ids : array-like, (..., >=2) of int
            Latitude, longitude, anything.

        Returns
        -------
        longitude, latitude : numpy.ndarray, (...) float64, degrees
            NaN where the id is not that of a longitude or a latitude, respectively.

        Raises
        ------
        ValueError
            If the ids are no integers or the last axis is too short.
        """
        tokens = np.asarray(ids)
        if tokens.dtype.kind not in "iu" or tokens.ndim < 1 or tokens.shape[-1] < 2:
            raise ValueError(f"ids must be integers (..., >=2), got {tokens.dtype} {tokens.shape}.")
        longitude = _look_up(tokens[..., 1], self.longitude_ids, _LONGITUDES)
        return longitude, _look_up(tokens[..., 0], self.latitude_ids, _LATITUDES)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the vocabulary as a file for `from_file`, of the same SHA-256."""
        Path(path).write_bytes(self._document)


class CaptionVocabulary(_Vocabulary):
    """WordPiece tokens of captions.

    Made by `from_file`; immutable. It holds the special tokens ``[PAD]``, ``[UNK]``, ``[SOS]``,
    ``[EOS]``, ``[S_0]``, ``[S_1]`` and ``[S_2]``, with any ids.

    What `encode` keeps of a text is what `decode` gives back: as the file's normaliser leaves it
    (BERT's: lower case, no accents), with one space between words and signs, but none before
    ``. , ! ?``. "A lake ,and  trees" comes back as "a lake, and trees", "north-east" as "north -
    east". Unknown words and a truncated end are lost.

    Attributes
    ----------
    pad, sos, eos : int
        Ids of padding, of the start and of the end of a sequence.
    sentinels : tuple of int
        Ids of ``[S_0]``, ``[S_1]`` and so on, which stand for masked spans.
    size : int
        Largest id plus one.
    sha256 : str
        Of the file, in hexadecimal.
    """

    def __init__(self, document: bytes, source: str, *, is_word_list: bool) -> None:
        tokenizer = _read_words(document, source) if is_word_list else _parse(document, source)
        model = tokenizer.model
        if not isinstance(model, WordPiece):
            kind = type(model).__name__
            raise ValueError(  # noqa: TRY004
                f"{source} is a {kind} tokenizer. Pass a WordPiece one, or a .txt list of words."
            )
        ids = tokenizer.get_vocab(with_added_tokens=True)
        _refuse_missing(source, [name for name in _SPECIALS if name not in ids])
        super().__init__(document, ids, source)
        # A caption that spells "[EOS]" means those letters.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._decoder = WordPieceDecoder(prefix=model.continuing_subword_prefix)
        self.pad: Final = ids["[PAD]"]
        self.sos: Final = ids["[SOS]"]
        self.eos: Final = ids["[EOS]"]
        names = itertools.takewhile(ids.__contains__, (f"[S_{n}]" for n in itertools.count()))
        self.sentinels: Final = tuple(ids[name] for name in names)
        silent = {ids[name] for name in _SPECIALS}.union(self.sentinels)
        self._words = {number: word for word, number in ids.items() if number not in silent}

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> CaptionVocabulary:
        """Read a tokenizer file.

        Parameters
        ----------
        path : path
            ``.txt``: a WordPiece list in UTF-8, one token per line, ids counted from 0, for BERT's
            normaliser (lower case). Anything else: a JSON file of the `tokenizers` library.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is no WordPiece tokenizer or lacks special tokens.
        """
        is_word_list = Path(path).suffix.lower() == ".txt"
        return cls(_read(path, "caption vocabulary"), str(path), is_word_list=is_word_list)

    def encode(self, texts: Iterable[str], max_length: int = 256) -> list[NDArray[np.int64]]:
        """Return the ids of texts.

        Parameters
        ----------
        texts : iterable of str
            Captions; the names of special tokens in them are plain letters.
        max_length : int
            Most ids of a text, the end of sequence included; longer texts lose their end.

        Returns
        -------
        list of numpy.ndarray, (<=max_length,) int64
            For each text its ids and the end of sequence, without padding. Words outside the
            vocabulary are ``[UNK]``.

        Raises
        ------
        TypeError
            If `texts` is one string, or one of them is none.
        ValueError
            If a text has nothing to encode, or `max_length` is below 2.
        """
        if isinstance(texts, str):
            raise TypeError("texts is one string: pass a list, encode([text]).")
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2, a token and the end: {max_length}.")
        encoded = []
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {position} is a {type(text).__name__}, not a string.")
            # Not encode_batch, whose threads would outnumber those that the runtime sets.
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if not ids:
                raise ValueError(f"text {position} is empty: {text!r}. Leave it out.")
            encoded.append(np.array([*ids[: max_length - 1], self.eos], np.int64))
        return encoded

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of ids, up to the end of sequence.

        Parameters
        ----------
        ids : array-like, (n,) of int
            Special tokens, ``[UNK]`` among them, and ids that are no token leave nothing behind.

        Returns
        -------
        str
            In the normalised form that the class describes.

        Raises
        ------
        ValueError
            If the ids are not one row of integers.
        """
        tokens = np.asarray(ids)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise ValueError(f"ids must be integers (n,), got {tokens.dtype} {tokens.shape}.")
        upto = itertools.takewhile(lambda number: number != self.eos, tokens.tolist())
        return self._decoder.decode([self._words[n] for n in upto if n in self._words])


def load_coordinate_vocabulary(path: str | PathLike[str] | None) -> CoordinateVocabulary:
    """Return the coordinate vocabulary of a file, the bundled one for None.

    See `CoordinateVocabulary.from_file` for the errors.
    """
    return CoordinateVocabulary.bundled() if path is None else CoordinateVocabulary.from_file(path)


def _degrees(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return degrees as an array of at least one dimension, all finite."""
    array = np.atleast_1d(np.asarray(values))
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be numbers in degrees, got {array.dtype}.")
    array = array.astype(np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        at = np.argmin(finite)
        raise ValueError(f"{name} must be finite, got {array.flat[at]} at position {at}.")
    return array


def _look_up(
    ids: NDArray[Any], known: NDArray[np.int64], degrees: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the degrees of ids, NaN for ids that are not among the known ones."""
    order = np.argsort(known)
    at = order[np.searchsorted(known, ids, sorter=order).clip(max=len(known) - 1)]
    return np.where(known[at] == ids, degrees[at], np.nan)


def _read(path: str | PathLike[str], kind: str) -> bytes:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No {kind} at {path.absolute()}: pass the model's tokenizer file.")
    return path.read_bytes()


def _parse(document: bytes, source: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(document.decode())
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"{source} is no JSON file of the tokenizers library. Get the file again. ({error})"
        ) from error
    # Sequences are not ragged here, and captions are cut where their end is added.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read_words(document: bytes, source: str) -> Tokenizer:
    """Return BERT's tokenizer for a list of words, one per line."""
    try:
        words = document.decode().rstrip("\r\n").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is no list of words in UTF-8 ({error}).") from error
    ids: dict[str, int] = {}
    for number, word in enumerate(words):
        if not word.strip() or word in ids:
            said = f"repeats {word!r}" if word in ids else "is empty"
            raise ValueError(
                f"{source}, line {number + 1} {said}. It must have one token per line, each once."
            )
        ids[word] = number
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens([name for name in _SPECIALS if name in ids])
    return tokenizer


def _single_id(tokenizer: Tokenizer, name: str) -> int | None:
    """Return the id of a token that stands for the whole word, None where there is none."""
    try:
        encoding = tokenizer.encode(name, add_special_tokens=False)
    except Exception:  # noqa: BLE001  # what a tokenizer without an unknown token raises
        return None
    # A marker of word starts may precede the word; an unknown word is "[UNK]".
    is_whole = len(encoding.ids) == 1 and encoding.tokens[0].endswith(name)
    return encoding.ids[0] if is_whole else None


def _refuse_missing(source: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        raise ValueError(
            f"{source} lacks {len(names)} tokens as words of their own: "
            f"{', '.join(names[:_LISTED])}{more}. Pass the tokenizer file of the model."
        )
