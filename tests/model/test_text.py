"""Places and captions survive the way to ids and back, and files that do not fit are refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from terramind_cube.modalities import CAPTIONS, MODALITIES
from terramind_cube.model.text import (
    CaptionVocabulary,
    CoordinateVocabulary,
    load_coordinate_vocabulary,
)

ROWS = MODALITIES["Coordinates"].vocabulary
SPECIALS = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", "[S_0]", "[S_1]", "[S_2]"]
WORDS = ["a", "lake", "and", "trees", "field", "of", "snow", "near", "the", "coast", "3", "s"]
SIGNS = list(".,!?-'()")
PIECES = [*SPECIALS, *WORDS, *SIGNS, "##s", "##land", "wood"]


@pytest.fixture(scope="module")
def places():
    return CoordinateVocabulary.bundled()


@pytest.fixture(scope="module")
def document(places, tmp_path_factory):
    """The bundled vocabulary as a file's content, to be spoiled."""
    path = tmp_path_factory.mktemp("vocabulary") / "config.json"
    places.save(path)
    return json.loads(path.read_text())


def _write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_every_cell_of_the_globe_comes_back(places):
    longitude, latitude = np.meshgrid(places.longitudes, places.latitudes)
    ids = places.encode(longitude, latitude)
    assert ids.shape == (721, 1441, 3)
    assert ids.dtype == np.int64
    assert np.array_equal(ids[..., 0], np.broadcast_to(places.latitude_ids[:, None], (721, 1441)))
    assert np.array_equal(ids[..., 1], np.broadcast_to(places.longitude_ids, (721, 1441)))
    assert (ids[..., 2] == places.eos).all()
    back = places.decode(ids)
    assert np.array_equal(back[0], longitude)
    assert np.array_equal(back[1], latitude)


def test_bundled_ids_are_unique_and_fixed(places):
    used = [*places.latitude_ids, *places.longitude_ids, places.eos]
    assert len(set(used)) == 721 + 1441 + 1
    assert min(used) == places.eos == 3
    assert max(used) == places.size - 1 == len(SPECIALS) + 721 + 1441 - 1
    assert not set(used) & {0, 1, 2, 4, 5, 6}
    places.check_fits(ROWS)
    # Stores and checkpoints refer to it: another one is another vocabulary.
    assert places.sha256 == "a6d710d4528ec7f61a9a5ecc55f4d5594921eb2949e26cadd0c0d53eb2c35af9"


@pytest.mark.parametrize(
    ("longitude", "latitude", "cell"),
    [
        (0.0, -0.0, (0.0, 0.0)),
        (-0.1, -0.1, (0.0, 0.0)),  # "-0.00" in TerraTorch
        (-0.125, 0.125, (0.0, 0.0)),  # half-way, to the even quarter
        (0.375, -0.375, (0.5, -0.5)),
        (12.125, 12.375, (12.0, 12.5)),
        (12.126, 12.374, (12.25, 12.25)),
        (180, 90, (180, 90)),
        (-180, -90, (-180, -90)),
        (179.9, 89.9, (180, 90)),
        (-179.9, -89.9, (-180, -90)),
        (181, 0, (-179, 0)),
        (-181, 0, (179, 0)),
        (180.1, 0, (180, 0)),
        (180.2, 0, (-179.75, 0)),
        (359.9, 0, (0, 0)),
        (360, 0, (0, 0)),
        (-725.5, 0, (-5.5, 0)),
        (1e300, 0, (0, 0)),  # a multiple of 360
    ],
)
def test_place_goes_to_its_nearest_cell(places, longitude, latitude, cell):
    ids = places.encode(longitude, latitude)
    assert ids.shape == (1, 3)
    decoded = places.decode(ids[0])
    assert decoded == cell
    assert not np.signbit(decoded)[np.array(cell) == 0].any()


@settings(deadline=None)
@given(longitude=st.floats(-1e4, 1e4), latitude=st.floats(-90, 90))
@example(longitude=-180.125, latitude=0.0)
def test_nearest_cell_is_an_eighth_of_a_degree_away_at_most(places, longitude, latitude):
    (east,), (north,) = places.decode(places.encode(longitude, latitude))
    assert abs(north - latitude) <= 0.125
    assert abs((east - longitude + 180) % 360 - 180) <= 0.125 + 1e-9


def test_shapes_and_kinds_of_numbers(places):
    expected = places.encode([1.0, 2.0], [3.0, 3.0])
    assert expected.shape == (2, 3)
    assert np.array_equal(places.encode([1, 2], 3), expected)
    assert np.array_equal(places.encode(np.float32([1, 2]), np.int16(3)), expected)
    assert places.encode(np.zeros((2, 1)), np.zeros(4)).shape == (2, 4, 3)
    assert places.encode([], []).shape == (0, 3)


def test_tables_agree_with_the_tokenizer_itself(places, document):
    tokenizer = Tokenizer.from_str(json.dumps(document))
    assert places.encode(-3.5, 12.25)[0].tolist() == (
        tokenizer.encode("lat=12.25 lon=-3.50 [EOS]").ids
    )
    for longitude, latitude in zip(places.longitudes[::7], places.latitudes[::3], strict=False):
        text = f"lat={latitude:.2f} lon={longitude:.2f} [EOS]"
        assert places.encode(longitude, latitude)[0].tolist() == tokenizer.encode(text).ids


def test_ids_of_no_cell_are_nan(places):
    latitude, longitude, eos = places.encode(5, 6)[0]
    ids = [[longitude, latitude, eos], [latitude, eos, eos], [-1, longitude, 0], [2**60, 10**9, 0]]
    decoded = np.array(places.decode(ids))
    np.testing.assert_equal(decoded, [[np.nan, np.nan, 5, np.nan], [np.nan, 6, np.nan, np.nan]])
    assert places.decode(np.array([latitude, longitude], np.uint64)) == (5, 6)


@pytest.mark.parametrize(
    ("longitude", "latitude", "said"),
    [
        (0, 90.01, r"latitude must lie in -90 .. 90 degrees, got 90.01 .* position 0.*swapped"),
        ([0, 1, 2], [3, 4, -120.5], r"got -120.5 beside longitude 2.0 at position 2.*swapped"),
        (150, 120, r"got 120.0 beside longitude 150.0 at position 0\.$"),
        (np.nan, 0, "longitude must be finite, got nan at position 0"),
        (0, [0, np.inf], "latitude must be finite, got inf at position 1"),
        ("12", 0, "longitude must be numbers in degrees, got <U2"),
        (None, 0, "longitude must be numbers in degrees, got object"),
        (0, True, "latitude must be numbers in degrees, got bool"),
        ([0, 1], [0, 1, 2], "shape"),
    ],
)
def test_senseless_places_are_refused(places, longitude, latitude, said):
    with pytest.raises(ValueError, match=said):
        places.encode(longitude, latitude)


@pytest.mark.parametrize("ids", [[1.0, 2.0], [7], 7, []])
def test_senseless_ids_of_places_are_refused(places, ids):
    with pytest.raises(ValueError, match=r"ids must be integers \(\.\.\., >=2\)"):
        places.decode(ids)


def test_saved_vocabulary_is_the_same(places, tmp_path):
    path = tmp_path / "places.json"
    places.save(path)
    for again in (load_coordinate_vocabulary(str(path)), pickle.loads(pickle.dumps(places))):
        assert again.sha256 == places.sha256
        assert (again.size, again.eos) == (places.size, places.eos)
        assert np.array_equal(again.latitude_ids, places.latitude_ids)
        assert np.array_equal(again.longitude_ids, places.longitude_ids)
    assert load_coordinate_vocabulary(None).sha256 == places.sha256


def test_another_order_of_ids_is_read(places, document, tmp_path):
    names = list(document["model"]["vocab"])
    numbers = np.random.default_rng(0).permutation(29_000)[: len(names)].tolist()
    other = dict(zip(names, numbers, strict=True))
    document = document | {
        "model": document["model"] | {"vocab": other},
        "added_tokens": [row | {"id": other[row["content"]]} for row in document["added_tokens"]],
        # As in files that were used for batches.
        "padding": {
            "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
        },
    }  # fmt: skip
    vocabulary = CoordinateVocabulary.from_file(_write(tmp_path / "config.json", document))
    expected = [other["lat=-12.25"], other["lon=0.00"], other["[EOS]"]]
    assert vocabulary.encode(-0.1, -12.25).tolist() == [expected]
    assert vocabulary.size == max(numbers) + 1
    assert vocabulary.sha256 != places.sha256
    longitude, latitude = np.meshgrid(places.longitudes, places.latitudes)
    back = vocabulary.decode(vocabulary.encode(longitude, latitude))
    assert np.array_equal(back, (longitude, latitude))
    vocabulary.check_fits(vocabulary.size)
    with pytest.raises(ValueError, match=rf"config.json has ids up to {max(numbers)}.* 20000 rows"):
        vocabulary.check_fits(20_000)


def _without(document, names, unknown="[UNK]"):
    vocab = {k: v for k, v in document["model"]["vocab"].items() if k not in names}
    added = [row for row in document["added_tokens"] if row["content"] not in names]
    model = document["model"] | {"vocab": vocab, "unk_token": unknown}
    return document | {"model": model, "added_tokens": added}


@pytest.mark.parametrize("unknown", ["[UNK]", "[NONE]"])
def test_missing_places_are_named(document, tmp_path, unknown):
    path = _write(
        tmp_path / "config.json",
        _without(document, ["lat=90.00", "lon=-0.25", "[EOS]"], unknown),
    )
    with pytest.raises(
        ValueError, match=r"lacks 3 tokens .*: lat=90.00, lon=-0.25, \[EOS\]\. Pass"
    ):
        CoordinateVocabulary.from_file(path)


def test_a_file_may_lack_cells_until_they_are_needed(document, tmp_path):
    lacking = ["lat=-90.00", "lat=90.00", "lon=-180.00"]
    vocabulary = CoordinateVocabulary.from_file(
        _write(tmp_path / "config.json", _without(document, lacking))
    )
    assert vocabulary.latitude_ids[0] == vocabulary.longitude_ids[0] == -1
    assert vocabulary.start == CoordinateVocabulary.bundled().start == 5
    longitude, latitude = vocabulary.decode(vocabulary.encode([12.25, 180], [-3.5, 89.75]))
    np.testing.assert_array_equal([longitude, latitude], [[12.25, 180], [-3.5, 89.75]])
    with pytest.raises(ValueError, match=r"no token for the cell of 12.0 90.0"):
        vocabulary.encode([10, 12], [50, 90])


def test_long_list_of_missing_places_is_abridged(document, tmp_path):
    names = [name for name in document["model"]["vocab"] if name.startswith("lat=")]
    path = _write(tmp_path / "config.json", _without(document, names))
    with pytest.raises(ValueError, match=r"lacks 721 tokens.*lat=-89.00 and 716 more") as caught:
        CoordinateVocabulary.from_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre_tokenizer": None}, "encodes 'lat=-90.00 lon=-180.00 .* as ids"),
        ({"pre_tokenizer": {"type": "BertPreTokenizer"}}, "lacks 2162 tokens"),
        ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}, "lacks 2162 tokens"),
    ],
)
def test_file_that_tokenizes_otherwise_is_refused(document, tmp_path, change, said):
    path = _write(tmp_path / "config.json", document | change)
    with pytest.raises(ValueError, match=said) as caught:
        CoordinateVocabulary.from_file(path)
    assert str(path) in str(caught.value)


def test_shared_id_is_refused(document, tmp_path):
    vocab = document["model"]["vocab"] | {"lat=1.00": document["model"]["vocab"]["lat=2.00"]}
    path = _write(tmp_path / "c.json", document | {"model": document["model"] | {"vocab": vocab}})
    with pytest.raises(ValueError, match="several tokens the same id"):
        CoordinateVocabulary.from_file(path)


@pytest.mark.parametrize("read", [CoordinateVocabulary.from_file, CaptionVocabulary.from_file])
@pytest.mark.parametrize("content", [b"", b"{}", b"<html>", b'{"model"', b"\xff\xfe\x00"])
def test_foreign_file_is_named(tmp_path, read, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no JSON file of the tokenizers library") as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("read", [load_coordinate_vocabulary, CaptionVocabulary.from_file])
@pytest.mark.parametrize("name", ["absent.json", "absent.txt", "."])
def test_absent_file_is_named(tmp_path, read, name):
    with pytest.raises(FileNotFoundError, match=r"No \w+ vocabulary at .*model's tokenizer file"):
        read(tmp_path / name)


def _write_captions(folder, kind, pieces=PIECES):
    ids = {piece: number for number, piece in enumerate(pieces)}
    if kind == "txt":
        return _write(folder / "vocab.txt", "\n".join(pieces) + "\n")
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens([name for name in SPECIALS if name in ids])
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(3)
    return _write(folder / "config.json", tokenizer.to_str())


@pytest.fixture(scope="module", params=["json", "txt"])
def captions(request, tmp_path_factory):
    path = _write_captions(tmp_path_factory.mktemp("captions"), request.param)
    return CaptionVocabulary.from_file(path)


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("a lake, and trees.", None),
        ("woodland near the coast!", None),
        ("lakes and woods? snows.", None),
        ("field - 3", None),
        ("A  Lake ,and\tTREES .", "a lake, and trees."),
        ("lake-coast", "lake - coast"),
        ("the lake's (snow)", "the lake ' s ( snow )"),
        ("tr\u00e8es", "trees"),
        ("a volcano near the coast", "a near the coast"),
    ],
)  # fmt: skip
def test_captions_come_back_normalised(captions, text, back):
    ids = captions.encode([text])[0]
    assert ids.dtype == np.int64
    assert ids[-1] == captions.eos
    assert captions.decode(ids) == (text if back is None else back)
    assert captions.decode(captions.encode([captions.decode(ids)])[0]) == captions.decode(ids)


def test_both_formats_give_the_same_ids(tmp_path):
    json_, txt = (
        CaptionVocabulary.from_file(_write_captions(tmp_path, kind)) for kind in ("json", "txt")
    )
    texts = ["A lake, and woodlands.", "unheard of"]
    for one, other in zip(json_.encode(texts), txt.encode(texts), strict=True):
        assert np.array_equal(one, other)
    assert [ids.tolist() for ids in txt.encode(texts[1:])] == [[1, PIECES.index("of"), 3]]
    assert (txt.pad, txt.sos, txt.eos, txt.sentinels) == (0, 2, 3, (4, 5, 6))
    assert txt.size == json_.size == len(PIECES)
    assert txt.sha256 != json_.sha256
    txt.check_fits(CAPTIONS.vocabulary)
    with pytest.raises(ValueError, match=r"vocab.txt has ids up to .* table has 9 rows"):
        txt.check_fits(9)


@settings(deadline=None)
@given(
    words=st.lists(
        st.tuples(st.sampled_from([*WORDS, "woods", "woodland"]), st.sampled_from(["", *".,!?"])),
        min_size=1,
        max_size=40,
    )
)
def test_texts_of_known_words_come_back(captions, words):
    text = " ".join(word + sign for word, sign in words)
    assert captions.decode(captions.encode([text])[0]) == text


def test_text_is_truncated_before_its_end(captions):
    whole = captions.encode(["lake " * 300])[0]
    assert len(whole) == CAPTIONS.max_length
    assert whole[-1] == captions.eos
    assert captions.decode(whole) == " ".join(["lake"] * 255)
    assert captions.decode(captions.encode(["a lake near"], max_length=3)[0]) == "a lake"
    assert len(captions.encode(["a lake near"], max_length=4)[0]) == 4


def test_generated_ids_are_read_up_to_the_end(captions):
    lake, s, a = (PIECES.index(word) for word in ("lake", "##s", "a"))
    ids = [captions.sos, captions.sentinels[1], a, captions.pad, lake, 1, s, 29_999, captions.eos]
    assert captions.decode([*ids, a, lake]) == "a lakes"
    assert captions.decode(np.array(ids[:-1])) == "a lakes"
    assert captions.decode([captions.eos]) == captions.decode([]) == ""


def test_spelt_special_tokens_are_letters(captions):
    (ids,) = captions.encode(["a [EOS] lake [PAD]"])
    assert ids.tolist().count(captions.eos) == 1
    assert captions.pad not in ids
    assert captions.decode(ids) == "a lake"


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("a lake",), TypeError, r"texts is one string: pass a list"),
        ((["a", 3],), TypeError, "text 1 is a int, not a string"),
        (([None],), TypeError, "text 0 is a NoneType"),
        ((["a", ""],), ValueError, "text 1 is empty: ''"),
        (([" \n"],), ValueError, r"text 0 is empty: ' \\n'"),
        ((["a"], 1), ValueError, "max_length must be at least 2"),
    ],
)
def test_senseless_captions_are_refused(captions, arguments, error, said):
    with pytest.raises(error, match=said):
        captions.encode(*arguments)


@pytest.mark.parametrize("ids", [[1.5], [[1, 2]], 3, ["a"]])
def test_senseless_ids_of_captions_are_refused(captions, ids):
    with pytest.raises(ValueError, match=r"ids must be integers \(n,\)"):
        captions.decode(ids)


@pytest.mark.parametrize("kind", ["json", "txt"])
def test_missing_special_tokens_are_named(tmp_path, kind):
    pieces = [piece for piece in PIECES if piece not in ("[SOS]", "[S_1]")]
    path = _write_captions(tmp_path, kind, pieces)
    with pytest.raises(ValueError, match=r"lacks 2 tokens .*: \[SOS\], \[S_1\]\.") as caught:
        CaptionVocabulary.from_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\nlake\na\n", "line 3 repeats 'a'"),
        (b"a\n\nlake", "line 2 is empty"),
        (b"", "line 1 is empty"),
        (b"a\n\xff\xfe", "no list of words in UTF-8"),
    ],
)
def test_bad_list_of_words_is_named(tmp_path, content, said):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        CaptionVocabulary.from_file(path)
    assert str(path) in str(caught.value)


def test_list_of_words_with_foreign_line_ends_is_read(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join(PIECES).encode())
    assert CaptionVocabulary.from_file(path).encode(["a lake"])[0].tolist() == [7, 8, 3]


def test_tokenizer_of_another_type_is_refused(document, tmp_path):
    path = _write(tmp_path / "config.json", document)
    with pytest.raises(
        ValueError, match=r"config.json is a WordLevel tokenizer\. Pass a WordPiece"
    ):
        CaptionVocabulary.from_file(path)
