"""What a search found, and how it shows and saves it."""

import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from xml.etree import ElementTree

import pystac
import pytest
from shapely.geometry import box, mapping, shape

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac import SearchResult, StaticCatalog, open_catalog
from terramind_cube.stac.bands import locate_bands
from terramind_cube.stac.summary import count_items

START = datetime(2024, 5, 1, 10, tzinfo=UTC)
BANDS = MODALITIES["S2L2A"].bands


def make_item(item_id, collection="sentinel-2-l2a", day=0, assets=BANDS, lon=9.0):
    area = box(lon, 48, lon + 1, 49)
    item = pystac.Item(
        item_id, mapping(area), list(area.bounds), START + timedelta(days=day), {},
        collection=collection,
    )  # fmt: skip
    for key in assets:
        item.add_asset(key, pystac.Asset(f"./{key}.tif", media_type="image/tiff"))
    item.set_self_href(f"/somewhere/{item_id}/{item_id}.json")
    return item


def land_cover(year):
    item = make_item(f"lulc-{year}", "io-lulc-annual-v02", assets=("data",))
    item.datetime = None
    item.properties |= {
        "start_datetime": f"{year}-01-01T00:00:00Z",
        "end_datetime": f"{year + 1}-01-01T00:00:00Z",
        "datetime": None,
    }
    return item


def search(*items, modalities=("S2L2A", "S1RTC", "DEM", "LULC"), **asked):
    return StaticCatalog("study", items).search(modalities=list(modalities), **asked)


@pytest.fixture
def found():
    scenes = [make_item(f"s2-{n}", day=n // 2) for n in range(6)]
    dem = make_item("dem", "cop-dem-glo-30", assets=("data",), lon=9.5)
    return search(*scenes, dem, land_cover(2023), land_cover(2024), bbox=(9.2, 48.2, 9.7, 48.8))


def test_result_is_a_sequence_that_never_changes(found):
    assert len(found) == 9
    assert found[0].id == "s2-0"
    assert [item.id for item in found[-2:]] == ["lulc-2023", "lulc-2024"]
    assert found[2] in found
    assert next(item.id for item in reversed(found)) == "lulc-2024"
    with pytest.raises(AttributeError):
        found.items = ()
    with pytest.raises(TypeError):
        found.by_modality["S2L2A"] = ()


def test_result_says_what_there_is_and_what_is_missing(found):
    assert found.modalities == ("S2L2A", "S1RTC", "DEM", "LULC")
    assert found.missing == ("S1RTC",)
    assert {name: len(items) for name, items in found.by_modality.items()} == {
        "S2L2A": 6, "S1RTC": 0, "DEM": 1, "LULC": 2,
    }  # fmt: skip
    assert shape(found.footprint).equals(box(9, 48, 10.5, 49))
    assert SearchResult(()).footprint is None
    counts = {row.name: row.by_date for row in count_items(found)}
    assert counts == {
        "S2L2A": {"2024-05-01": 2, "2024-05-02": 2, "2024-05-03": 2},
        "S1RTC": {},
        "DEM": {"": 1},
        "LULC": {"2023": 1, "2024": 1},
    }


def test_result_as_text(found):
    assert repr(found).splitlines() == [
        "<SearchResult: 9 items of study>",
        "  S2L2A      6  2024-05-01 to 2024-05-03, 3 dates",
        "  S1RTC      0",
        "  DEM        1  at any time",
        "  LULC       2  2023 to 2024, 2 years",
        "  missing: S1RTC",
    ]
    assert repr(SearchResult((), source="nothing")) == "<SearchResult: 0 items of nothing>"


class Balanced(HTMLParser):
    """Checks that every tag is closed, and keeps the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_html(result):
    html, parser = result._repr_html_(), Balanced()
    parser.feed(html)
    assert not parser.open
    return html, parser.text


def test_result_in_a_notebook(found):
    html, text = read_html(found)
    for part in ("9 items of study", "2024-05-03", "at any time", "2023 to 2024", " S1RTC"):
        assert any(part in words for words in text), part
    # The theme's own colours, no scripts and nothing from elsewhere.
    assert not re.search(r"#[0-9a-f]{3}|<script|https?:|(?<!-)color:", html)
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", html).group())
    paths = svg.findall("path")
    # The tile, the elevation beside it and the area; what is repeated is drawn once.
    assert len(paths) == 3
    assert paths[-1].get("stroke-dasharray")
    width, height = float(svg.get("width")), float(svg.get("height"))
    for path in paths:
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d"))]
        assert min(numbers) >= 0
        assert max(numbers[0::2]) <= width
        assert max(numbers[1::2]) <= height


def test_many_dates_are_summed_up():
    result = search(*(make_item(f"{n}", day=n) for n in range(40)), modalities=["S2L2A"])
    _, text = read_html(result)
    assert "and 28 more" in text
    assert text[-1] == "28"
    assert "2024-05-12" in text
    assert "2024-05-13" not in text


def test_everything_shown_is_escaped():
    nasty = "<b>&\"'"
    item = make_item(nasty, nasty)
    html = StaticCatalog(nasty, (item,)).search(collections=[nasty, "<i>"])._repr_html_()
    assert "<b>&" not in html.replace("<b>SearchResult", "")
    assert "<i>" not in html
    assert "&lt;b&gt;&amp;" in html


def test_picture_across_the_antimeridian_is_narrow():
    items = [make_item("west", lon=178.5), make_item("east", lon=-179.5)]
    html, _ = read_html(search(*items, modalities=["S2L2A"]))
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", html).group())
    # 3 degrees of longitude by 1 of latitude at 48.5 degrees north.
    assert float(svg.get("width")) == 180
    assert float(svg.get("height")) == pytest.approx(180 / 3 / 0.6626, abs=1)


def test_picture_shows_the_area_however_large_the_items_are():
    zone = make_item("zone", lon=6)
    zone.geometry = mapping(box(6, -80, 12, 84))
    html, _ = read_html(search(zone, bbox=(9, 48, 9.1, 48.1)))
    frame, area = (path.split('"')[0] for path in html.split('d="')[1:])
    numbers = [float(n) for n in re.findall(r"[\d.]+", area)]
    assert max(numbers[1::2]) - min(numbers[1::2]) == pytest.approx(90, abs=1)
    assert max(float(n) for n in re.findall(r"[\d.]+", frame)) == pytest.approx(180, abs=1)


def test_result_without_places_or_items_is_shown():
    item = make_item("nowhere")
    item.geometry = item.bbox = None
    html, _ = read_html(search(item))
    assert "<svg" not in html
    html, text = read_html(SearchResult((), modalities=("DEM",)))
    assert "0 items of items" in "".join(text)
    point = make_item("point")
    point.geometry = {"type": "Point", "coordinates": [9, 48]}
    assert read_html(search(point))[0].count("<path") == 1


def test_items_of_other_collections_are_listed_under_these(found):
    hls = make_item("hls", "HLSL30.v1.5", assets=("B01",))
    result = StaticCatalog("all", (*found, hls)).search()
    assert list(result.groups()) == ["S2L2A", "DEM", "LULC", "HLSL30.v1.5"]
    assert result.missing == ()


@pytest.mark.parametrize("name", ["items.json", "items.geojson", "items.parquet", "i.GeoParquet"])
def test_saved_result_opens_as_a_catalog(found, tmp_path, name):
    path = found.save(tmp_path / "new" / name)
    assert [file.name for file in path.parent.iterdir()] == [name]
    again = open_catalog(path).search(modalities=found.modalities, bbox=(9.2, 48.2, 9.7, 48.8))
    assert [item.id for item in again] == [item.id for item in found]
    assert again.missing == found.missing
    for item in again.by_modality["S2L2A"]:
        located = locate_bands(item, MODALITIES["S2L2A"])
        assert located.bands[0].href == f"/somewhere/{item.id}/B01.tif"
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        found.save(path)
    assert path.read_bytes() == before
    SearchResult(found[:1]).save(path, overwrite=True)
    assert len(open_catalog(path).search()) == 1


def test_saving_does_not_change_the_items(found, tmp_path):
    before = [item.to_dict() for item in found]
    found.save(tmp_path / "items.json")
    found.save(tmp_path / "items.parquet")
    assert [item.to_dict() for item in found] == before


def test_what_cannot_be_saved_is_refused(found, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'items\.txt': the suffix is \.json or"):
        found.save(tmp_path / "items.txt")
    with pytest.raises(ValueError, match="no item to save"):
        SearchResult(()).save(tmp_path / "items.json")

    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr(json, "dumps", fail)
    with pytest.raises(OSError, match="disk full"):
        found.save(tmp_path / "items.json")
    assert not list(tmp_path.iterdir())
