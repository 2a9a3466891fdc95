"""Which processing of an acquisition is read."""

from datetime import UTC, datetime
from itertools import permutations

import pystac
import pytest

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac.acquisitions import acquisition, newest_processing
from terramind_cube.stac.bands import ItemBands


def source(item_id, **properties):
    fields = {name.replace("__", ":"): value for name, value in properties.items()}
    item = pystac.Item(item_id, None, None, datetime(2020, 7, 5, tzinfo=UTC), fields)
    return ItemBands(item, MODALITIES["S2L2A"], ())


OLD = source(
    "S2B_MSIL2A_20200705T101559_R065_T32TMT_20200706T010000",
    s2__mgrs_tile="32TMT",
    s2__datatake_id="GS2B_20200705T101559_017394_N02.14",
    s2__processing_baseline="02.14",
)
NEW = source(
    "S2B_MSIL2A_20200705T101559_N0500_R065_T32TMT_20230530T175912",
    grid__code="MGRS-32TMT",
    eopf__datatake_id="GS2B_20200705T101559_017394_N05.00",
    eopf__datastrip_id="S2B_OPER_MSI_L2A_DS_S2RP_20230530T175912_S20200705T101917_N05.00",
    processing__version="05.00",
)


def ids(sources):
    return [found.item.id for found in sources]


def test_newest_baseline_wins_in_any_order():
    other_tile = source(NEW.item.id.replace("T32TMT", "T32TNT"))
    for order in permutations([OLD, NEW, other_tile]):
        kept = newest_processing(order)
        assert ids(kept) == [i for i in ids(order) if i != OLD.item.id]


def test_of_one_baseline_the_last_generation_wins():
    again = [
        source(f"S2B_MSIL2A_20200705T101559_R065_T32TMT_{day}T010000", s2__processing_baseline="02.12")
        for day in ("20200706", "20200909", "20200801")
    ]  # fmt: skip
    assert ids(newest_processing(again)) == [again[1].item.id]


def test_two_datastrips_of_a_tile_are_both_read():
    strips = [
        source(
            f"S2A_29RKH_20200219_{number}_L2A",
            grid__code="MGRS-29RKH",
            s2__datatake_id="GS2A_20200219T112111_024344_N02.14",
            s2__datastrip_id=f"S2A_OPER_MSI_L2A_DS_MPS__20200219T123947_S20200219T{time}_N02.14",
            s2__processing_baseline="02.14",
        )
        for number, time in ((0, "113105"), (1, "113118"))
    ]
    assert newest_processing(strips) == strips


def test_other_days_satellites_and_unknown_items_stay():
    others = [
        source("S2A_MSIL2A_20200705T101559_R065_T32TMT_20200706T010000"),
        source("S2B_MSIL2A_20200708T101559_R065_T32TMT_20200709T010000"),
        source("scene"),
        source("scene2"),
    ]
    assert newest_processing([OLD, *others]) == [OLD, *others]


@pytest.mark.parametrize(
    ("found", "tile", "datatake"),
    [
        (OLD, "32TMT", "B20200705T101559"),
        (NEW, "32TMT", "B20200705T101559"),
        (source("S2A_MSIL1C_20200717T221941_N0209_R029_T01LAC_20200717T234135"), "01LAC",
         "A20200717T221941"),
        (source("S2A_1LAC_20200717_0_L2A", s2__datatake_id="GS2A_20200717T221941_026481_N02.14"),
         "01LAC", "A20200717T221941"),
    ],
)  # fmt: skip
def test_acquisition_is_read_in_every_spelling(found, tile, datatake):
    shown = acquisition(found.item)
    assert (shown.tile, shown.datatake) == (tile, datatake)


def slice_of(item_id, created, *, west=11.0, when=datetime(2023, 6, 1, 5, 29, 14, tzinfo=UTC)):
    fields = {"platform": "sentinel-1a", "created": created}
    bbox = [west, 46.0, west + 3, 48.0]
    item = pystac.Item(item_id, None, bbox, when, fields, collection="sentinel-1-rtc")
    return ItemBands(item, MODALITIES["S1RTC"], ())


def test_of_a_radar_slice_the_newest_processing_is_read():
    """Whatever the ids are in order of the alphabet."""
    name = "S1A_IW_GRDH_1SDV_20230601T052914_20230601T052939_048788_05DE08_rtc"
    following = slice_of(
        name.replace("052914", "052939"), "2023-06-02", when=datetime(2023, 6, 1, 5, 29, 39, tzinfo=UTC)
    )  # fmt: skip
    for old_id, new_id in ((name, f"{name}_v2"), (f"{name}_v2", name), ("b", "a")):
        old, new = slice_of(old_id, "2023-06-02"), slice_of(new_id, "2024-01-09")
        for order in permutations([old, new, following]):
            kept = newest_processing(order)
            assert ids(kept) == [i for i in ids(order) if i != old_id]


def test_tiles_of_one_radar_slice_are_all_read():
    tiles = [slice_of(f"S1A_20230601T052914_tile{n}", "2024", west=8.0 + 3 * n) for n in range(3)]
    assert newest_processing(tiles) == tiles
    bare = ItemBands(
        pystac.Item("bare", None, None, datetime(2023, 6, 1), {}), MODALITIES["S1RTC"], ()
    )
    assert newest_processing([bare, bare]) == [bare, bare]
