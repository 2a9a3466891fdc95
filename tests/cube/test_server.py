"""Cubes over HTTP: faults in passing, tokens that expire, files that stay broken, and thrift."""

import itertools
import pickle
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest
import xarray as xr

import terramind_cube as tc
from terramind_cube.cube.assets import ReadOptions
from terramind_cube.cube.failures import AssetError
from terramind_cube.stac import api
from terramind_cube.stac.access import BlobSigner
from tests.cube.scenes import grid
from tests.cube.study import SIZE_PX, write_study
from tests.stac.api_server import ApiServer, SasSigner

# rasterio 1.4 warns of its own in-memory target, once, when warping in threads.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Dataset has no geotransform:rasterio.errors.NotGeoreferencedWarning"
)

ALL = ("S2L2A", "S1RTC", "DEM", "LULC")
QUICK = ReadOptions(timeout_s=10, retries=4, delay_s=0.01)
AREA = grid(SIZE_PX * 3 // 2)[:SIZE_PX]
# Where "S2A-east" lies alone, and the columns of both scenes of the day.
EAST_ALONE, SHARED_COLUMNS = slice(SIZE_PX, None), slice(SIZE_PX // 2, SIZE_PX)
BEYOND_HEADER = 33_000
"""Bytes that are read when a file is opened are before this one."""
MANY = {"y": 128, "x": 128}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def loopback(study):
    with ApiServer(study.folder) as server:
        yield server


@pytest.fixture
def server(loopback):
    """A server without a fault yet."""
    loopback.heal()
    loopback.expire()
    loopback.configure(items=[], page_length=10, page_limit=100, has_query=True, bearer=None,
                       token_uses=float("inf"), token_life_s=float("inf"))  # fmt: skip
    loopback.forget()
    return loopback


@pytest.fixture(scope="module")
def local(study):
    return load(study.items())


@pytest.fixture
def open_items(server, study):
    """Return items whose files anyone may read, at addresses of their own."""

    def make(*collections):
        return study.items(f"{server.url}/files/{unseen()}", *collections)

    return make


@pytest.fixture
def guarded_items(server, study):
    """Return items whose files need a token, at addresses of their own."""

    def make(*collections):
        return study.items(f"{server.url}/blob/account/container/{unseen()}", *collections)

    return make


@pytest.fixture
def signer(server):
    """Sign as for Planetary Computer, with the server's tokens."""
    return BlobSigner(f"{server.url}/sas/{unseen()}")


_NUMBERS = itertools.count()


def unseen():
    """GDAL knows an address for as long as the process lives; the server ignores this part of it."""
    return f"@{next(_NUMBERS)}"


def build(items, **options):
    settings = {"modalities": ALL, "geobox": AREA, "datetime": "2024", "reading": QUICK,
                "chunks": {"y": 240, "x": 240}}  # fmt: skip
    return tc.load_cube(items, **(settings | options))


def load(items, **options):
    return compute(build(items, **options))


def compute(cube, threads=4):
    # Of its own: what still runs after an error must not bother the server in the next test.
    with ThreadPoolExecutor(threads) as pool:
        return cube.compute(scheduler="threads", pool=pool)


# Searching.


@pytest.fixture
def quick_search(monkeypatch):
    monkeypatch.setattr(api, "BACKOFF_S", 0.001)


def test_cube_of_a_faulty_server_is_the_cube_of_its_files(server, study, local, quick_search):
    items = study.items(f"{server.url}/files/{unseen()}")
    server.configure(items=items, page_length=1)
    server.fail("/search", status=429, retry_after="0")
    server.fail("/search", status=503, after=1)
    server.fail("/search", drop="early", after=2)
    server.fail("/search", drop="body", after=2)
    cube = load(server.url)
    xr.testing.assert_equal(cube, local)
    assert cube["S2L2A"].attrs["stac_items"] == local["S2L2A"].attrs["stac_items"]


def test_every_page_is_asked_for_once_and_every_item_found_once(server, study):
    template = study.items("https://x.test", "sentinel-2-l2a")[0]
    items = [template.clone() for _ in range(23)]
    for number, item in enumerate(items):
        item.id = f"scene-{number:02}"
    server.configure(items=items, page_limit=4)
    found = tc.open_catalog(server.url).search(collections=["sentinel-2-l2a"])
    assert [item.id for item in found] == [item.id for item in items]
    assert len(server.requests("/search")) == 6


def test_server_is_left_alone_as_long_as_it_asks_for(server, study, quick_search):
    server.configure(items=study.items("https://x.test"))
    catalog = tc.open_catalog(server.url)
    server.fail("/search", status=429, retry_after="1")
    start = time.monotonic()
    assert len(catalog.search(collections=["sentinel-2-l2a"])) == 3
    assert 1 <= time.monotonic() - start < 5


def test_search_that_fails_for_good_names_the_server(server, study, quick_search):
    server.configure(items=study.items("https://x.test"))
    server.fail("/search", times=None, status=500)
    with pytest.raises(OSError, match=rf"{server.url}.*500"):
        load(server.url)


# Faults in passing.


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429},
        {"status": 429, "retry_after": "0"},
        {"status": 500},
        {"status": 503},
        {"drop": "early"},
        {"drop": "body"},
        {"drop": "half"},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)
@pytest.mark.parametrize("from_byte", [0, BEYOND_HEADER], ids=["open", "read"])
def test_faults_in_passing_leave_no_trace(server, open_items, local, fault, from_byte):
    files = ["S2A-west_B04", "S2A-east_B08", "rtc_vv", "COP30", "32U-2024"]
    faults = [server.fail(name, 4, from_byte=from_byte, **fault) for name in files]
    cube = build(open_items(), on_error="nodata")
    computed = compute(cube)
    assert cube.attrs["read_failures"] == []
    xr.testing.assert_equal(computed, local)
    hits = [server.hits(number) for number in faults]
    if fault != {"drop": "half"} or from_byte:  # half of what is asked for holds a whole header
        assert hits == [4] * len(files)


@pytest.mark.parametrize("from_byte", [0, BEYOND_HEADER], ids=["open", "read"])
def test_request_that_hangs_is_given_up_and_repeated(server, open_items, local, from_byte):
    fault = server.fail("S2A-west_B04", 1, hang_s=60, from_byte=from_byte)
    patient = ReadOptions(timeout_s=1, retries=2, delay_s=0.01)
    start = time.monotonic()
    cube = load(open_items(), reading=patient)
    assert 1 <= time.monotonic() - start < 8
    assert server.hits(fault) == 1
    xr.testing.assert_equal(cube, local)


def test_number_in_a_file_name_is_not_taken_for_a_status(server, study, local):
    name = study.file("S2A-west", "B04")
    (study.folder / "tile-404.tif").write_bytes((study.folder / name).read_bytes())
    items = study.items(f"{server.url}/files/{unseen()}")
    items[0].assets["B04"].href = items[0].assets["B04"].href.replace(name, "tile-404.tif")
    # In the first request after HEAD, so that GDAL's message has the file's name and no status.
    server.fail("tile-404", 4, method="GET", status=503)
    bands = {"S2L2A": ["B04"]}
    cube = load(items, modalities=["S2L2A"], bands=bands, clouds=False)
    np.testing.assert_array_equal(cube["S2L2A"], local["S2L2A"].sel(S2L2A_band=["B04"]))


@pytest.mark.filterwarnings("ignore:The resolution is 40 m")
def test_overviews_are_read_through_faults_and_signed_alike(server, study, guarded_items, signer):
    options = {"geobox": AREA.zoom_out(4), "modalities": ["S2L2A", "S1RTC"]}
    expected = load(study.items(), **options)
    server.fail("S2A-west_B04", 4, status=503)
    server.fail("rtc_vv", 4, drop="early", after=2)
    xr.testing.assert_equal(load(guarded_items(), sign=signer, **options), expected)


def test_files_that_must_be_opened_to_know_where_they_lie(server, open_items, local):
    items = open_items()
    for item in items:
        item.geometry = item.bbox = None
        for fields in (item.properties, *(a.extra_fields for a in item.assets.values())):
            for name in [name for name in fields if name.startswith("proj:")]:
                del fields[name]
    faults = [server.fail("S2A-west_B01", 2, status=503), server.fail("S2A-east_B01", drop="early")]
    # Without an area: the grid covers the files, which are opened while the cube is built.
    cube = load(items[:2], modalities=["S2L2A"], geobox=None)
    np.testing.assert_array_equal(cube["S2L2A"], local["S2L2A"])
    assert [server.hits(number) for number in faults] == [2, 1]


def test_every_sensor_on_its_own_grid(server, study, guarded_items, signer):
    expected = load(study.items(), mode="native")
    server.fail("S2A-west_B0[15]", 4, status=503)
    server.fail("rtc_vv", 4, drop="early")
    tree = build(guarded_items(), mode="native", sign=signer)
    assert not server.requests("/blob", method="POST")
    xr.testing.assert_equal(compute(tree), expected)


# Tokens.


def test_tokens_that_expire_after_some_uses_are_replaced(server, guarded_items, local):
    server.configure(token_uses=7)
    cube = load(guarded_items(), sign=SasSigner(server.url))
    xr.testing.assert_equal(cube, local)
    assert server.requests("/blob", status=206)


def test_token_that_expires_between_building_and_computing(server, guarded_items, local, signer):
    cube = build(guarded_items(), sign=signer)
    assert not server.requests("/sas")  # nothing was read, so nothing was signed
    first = cube["LULC"].compute(scheduler="synchronous")
    assert len(server.requests("/sas")) == 1
    server.expire()
    xr.testing.assert_equal(compute(cube, threads=8), local)
    xr.testing.assert_equal(first, local["LULC"])
    # However many threads were refused at the same time.
    assert len(server.requests("/blob", status=403)) >= 1
    assert len(server.requests("/sas")) == 2


def test_token_that_expires_in_the_middle_is_renewed_once(server, guarded_items, local, signer):
    server.configure(token_uses=40)
    cube = build(guarded_items(), sign=signer, chunks=MANY)
    cube["LULC"][0, :1, :1].compute(scheduler="synchronous")
    server.configure(token_uses=float("inf"))
    xr.testing.assert_equal(compute(cube, threads=8), local)
    assert len(server.requests("/sas")) == 2


def test_token_service_that_is_busy_is_waited_for(server, guarded_items, local, signer):
    server.fail("/sas", 2, status=503)
    server.fail("/sas", 1, drop="early")
    xr.testing.assert_equal(load(guarded_items(), sign=signer), local)


def test_signed_addresses_are_sent_as_they_are(server, study, local):
    token = SasSigner(server.url)(f"{server.url}/blob/account/container").partition("?")[2]
    assert {"%2B", "%2F", "%25"} <= {token[i : i + 3] for i in range(len(token))}
    items = study.items(f"{server.url}/blob/account/container/{unseen()}")
    for item in items:
        for asset in item.assets.values():
            asset.href = f"{asset.href}?{token}"
    xr.testing.assert_equal(load(items), local)
    assert {request.query for request in server.requests("/blob")} == {token}


def test_header_of_the_caller_is_sent_and_never_shown(server, open_items, local):
    server.configure(bearer="opensesame")
    headers = {"GDAL_HTTP_HEADERS": "Authorization: Bearer opensesame"}
    mine = ReadOptions(timeout_s=10, retries=0, delay_s=0.01, gdal=headers)
    xr.testing.assert_equal(load(open_items(), reading=mine), local)
    with pytest.raises(AssetError, match="401") as caught:
        load(open_items(), reading=ReadOptions(retries=0))
    server.configure(bearer="another")
    with pytest.raises(AssetError, match="401") as caught:
        load(open_items(), reading=mine)
    assert "opensesame" not in "".join(traceback.format_exception(caught.value))


# Files that stay broken.

BROKEN = [
    pytest.param({"status": 404}, id="gone"),
    pytest.param({"status": 403}, id="forbidden"),
    pytest.param({"status": 503}, id="busy for ever"),
    pytest.param({"drop": "early"}, id="dropped"),
    pytest.param({"status": 403, "method": "GET"}, id="opened in vain"),
    pytest.param({"status": 503, "from_byte": BEYOND_HEADER}, id="unreadable"),
    pytest.param({"drop": "half", "from_byte": BEYOND_HEADER}, id="short"),
]
FEW = ReadOptions(timeout_s=10, retries=1, delay_s=0.01)


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_file_is_named_without_its_token(
    server, study, guarded_items, signer, fault, caplog, capfd
):
    server.fail("S2A-west_B04", None, **fault)
    items = guarded_items()
    with pytest.raises(AssetError) as caught:
        load(items, sign=signer, reading=FEW)
    error = caught.value
    assert error.item_id == "S2A-west"
    assert error.asset == "B04"
    assert error.href == items[0].assets["B04"].href
    assert {error.href, "'S2A-west'"} <= set(str(error).replace(": ", " ").split())
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.href) == (str(error), error.href)
    assert "sig=" not in "".join(traceback.format_exception(error))
    assert "sig=" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(("status", "told"), [(404, "404"), (403, "403"), (503, "503")])
def test_reason_tells_the_status(server, open_items, status, told):
    server.fail("S2A-west_B04", None, status=status)
    with pytest.raises(AssetError) as caught:
        load(open_items(), reading=FEW)
    assert told in caught.value.reason


def test_file_that_is_gone_is_not_asked_for_again_and_again(server, open_items):
    server.fail("S2A-west_B04", None, status=404)
    bands = {"S2L2A": ["B04"]}
    with pytest.raises(AssetError, match="404"):
        load(open_items(), modalities=["S2L2A"], bands=bands, clouds=False, chunks={})
    assert len(server.requests("S2A-west_B04")) <= 2


def test_busy_server_is_left_alone_as_long_as_it_asks(server, open_items):
    server.fail("S2A-west_B04", 2, status=503, retry_after="1")
    start = time.monotonic()
    load(open_items(), modalities=["S2L2A"], bands={"S2L2A": ["B04"]}, clouds=False, chunks={})
    assert 0.9 <= time.monotonic() - start < 9


def test_file_that_is_given_up_does_not_hold_up_its_other_chunks(server, open_items):
    server.fail("S2A-west_B04", None, status=503)
    slow = ReadOptions(timeout_s=10, retries=2, delay_s=0.3)
    start = time.monotonic()
    cube = build(open_items(), modalities=["S2L2A"], bands={"S2L2A": ["B04"]}, clouds=False,
                 chunks={"y": 60, "x": 60}, reading=slow, on_error="nodata")  # fmt: skip
    compute(cube, threads=1)
    assert len(cube.attrs["read_failures"]) == 1
    # 0.3 s and 0.6 s once, not for each of its dozens of chunks.
    assert time.monotonic() - start < 15


# Half an answer may hold a whole tile.
@pytest.mark.parametrize("fault", BROKEN[:-1])
def test_broken_file_leaves_a_hole_only_where_nothing_else_is(
    server, open_items, study, local, fault
):
    server.fail("S2A-east_B04", None, **fault)
    items = open_items()
    cube = build(items, on_error="nodata", reading=FEW, chunks=MANY)
    computed = compute(cube)
    without = [item for item in study.items() if item.id != "S2A-east"]
    expected = local.copy(deep=True)
    expected["S2L2A"][:, 3] = load(without)["S2L2A"][:, 3]
    assert (expected["S2L2A"][:, 3, :, EAST_ALONE] == 0).all()
    assert (expected["S2L2A"][:, 3, :, SHARED_COLUMNS] > 0).all()
    xr.testing.assert_equal(computed, expected)
    for attrs in (cube.attrs, computed.attrs):
        (failure,) = attrs["read_failures"]
        assert failure.startswith(f"S2A-east, B04, {items[1].assets['B04'].href}: ")


@pytest.mark.parametrize("drop", ["body", "half"])
def test_answers_that_are_cut_give_right_pixels_or_none(server, open_items, study, drop):
    scenes = [
        load([item], modalities=["S2L2A"], bands={"S2L2A": ["B04"]}, clouds=False)["S2L2A"]
        for item in study.items()[:2]
    ]
    server.fail("S2A-.*_B04", None, drop=drop, from_byte=BEYOND_HEADER)
    cube = build(open_items(), on_error="nodata", reading=FEW, chunks=MANY)
    red = compute(cube)["S2L2A"].sel(S2L2A_band=["B04"])
    assert (red == 0).any()
    # Where one scene has a hole, the other may be seen.
    assert ((red == 0) | (red == scenes[0]) | (red == scenes[1])).all()
    assert len(cube.attrs["read_failures"]) == 2


def test_all_kinds_of_files_may_be_missing(server, open_items, local):
    broken = ("S2A-east_SCL", "rtc_vh", "COP30", "32U-2024")
    for name in broken:
        server.fail(name, None, status=404)
    cube = build(open_items(), on_error="nodata", chunks=MANY)
    computed = compute(cube)
    xr.testing.assert_equal(computed["S2L2A"], local["S2L2A"])
    xr.testing.assert_equal(computed["S1RTC"][:, 0], local["S1RTC"][:, 0])
    assert np.isnan(computed["S1RTC"][:, 1]).all()
    assert np.isnan(computed["DEM"]).all()
    assert not computed["LULC"].any()
    assert not computed["SCL"][..., EAST_ALONE].any()
    assert (computed["SCL"][..., SHARED_COLUMNS] > 0).all()
    assert computed["cloud_mask"][..., EAST_ALONE].all()
    assert len(cube.attrs["read_failures"]) == len(broken)
    for name in broken:
        assert sum(name in failure for failure in cube.attrs["read_failures"]) == 1


def test_file_that_recovers_is_read_by_the_next_computation(server, open_items, local):
    server.fail("S2A-west_B04", None, status=404)
    cube = build(open_items(), on_error="nodata", reading=FEW)
    assert not compute(cube)["S2L2A"][0, 3, 0, 0]
    server.heal()
    xr.testing.assert_equal(compute(cube), local)


def test_failures_hide_the_token(server, guarded_items, signer):
    server.fail("S2A-east_B04", None, status=403, from_byte=BEYOND_HEADER)
    cube = build(guarded_items(), on_error="nodata", sign=signer, reading=FEW)
    compute(cube)
    (failure,) = cube.attrs["read_failures"]
    assert "sig=" not in failure


@pytest.mark.parametrize("from_byte", [0, BEYOND_HEADER], ids=["open", "read"])
def test_file_that_hangs_is_given_up_in_time(server, open_items, from_byte):
    server.fail("S2A-west_B04", None, hang_s=60, from_byte=from_byte)
    once = ReadOptions(timeout_s=1, retries=0)
    options = {"modalities": ["S2L2A"], "bands": {"S2L2A": ["B04"]}, "clouds": False, "chunks": {}}
    start = time.monotonic()
    with pytest.raises(AssetError, match="S2A-west"):
        load(open_items(), reading=once, **options)
    # libtiff asks up to three times for a tile.
    assert time.monotonic() - start < 5


# Thrift.


def test_little_is_transferred_of_a_file_for_a_small_area(server, open_items, study):
    names = {study.file("S2A-west", band) for band in ("B04", "B03", "B02")}
    load(open_items(), geobox=AREA[100:164, 100:164], modalities=["RGB"], clouds=False)
    sent, counts = server.sent("/files"), server.counts("/files")
    assert {path.rpartition("/")[2] for path in sent} == names
    for path, count in counts.items():
        size = (study.folder / path.rpartition("/")[2]).stat().st_size
        assert sent[path] < size / 3
        assert count <= 4
    assert not server.requests("/files", method="GET", start=None)


def test_files_are_opened_once_for_many_chunks(server, open_items, study):
    load(open_items(), chunks=MANY)
    counts = server.counts("/files")
    heads = [request.path for request in server.requests("/files", method="HEAD")]
    # Threads that begin with a file at the same moment may each ask for its header.
    assert len(heads) <= 2 * len(set(heads))
    chunks = 4 * 6
    for path, count in counts.items():
        assert count <= 2 + 2 * chunks, path
    total = sum((study.folder / name.rpartition("/")[2]).stat().st_size for name in counts)
    assert sum(server.sent("/files").values()) < 2 * total


def test_only_what_is_read_is_asked_for(server, open_items):
    load(open_items(), modalities=["NDVI"], clouds=False)
    read = {urlsplit(path).path.rpartition("_")[2] for path in server.counts("/files")}
    assert read == {"B04.tif", "B08.tif"}


def test_addresses_are_signed_where_they_are_read_and_not_before(server, guarded_items):
    calls = []

    def sign(href):
        calls.append(href)
        return SasSigner(server.url)(href)

    cube = build(guarded_items(), sign=sign, modalities=["DEM"])
    assert not calls
    assert not server.requests("")
    compute(cube)
    assert {path.rpartition("/")[2] for path in calls} == {"COP30-N48-E008_data.tif"}


# On a cluster.


@pytest.fixture(scope="module")
def cluster():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None
        ) as workers,
        Client(workers) as client,
    ):
        yield client


@pytest.mark.slow
def test_cluster_reads_through_faults_and_renews_tokens(
    server, guarded_items, local, signer, cluster
):
    server.configure(token_uses=40)
    server.fail("S2A-west_B04", 4, status=503)
    server.fail("rtc_vv", 4, drop="early")
    cube = build(guarded_items(), sign=signer).compute()
    xr.testing.assert_equal(cube, local)
    assert len(server.requests("/sas")) >= 4  # each of two workers began with one that went bad
    assert server.requests("/blob", status=403)


def test_any_function_signs_on_a_cluster(server, guarded_items, local, cluster):
    url = server.url
    server.configure(token_uses=9)
    cube = load_on_cluster(guarded_items(), sign=lambda href: SasSigner(url)(href))
    xr.testing.assert_equal(cube, local)


@pytest.mark.slow
def test_failures_on_a_cluster_are_listed_once(
    server, guarded_items, study, local, signer, cluster
):
    server.fail("S2A-east_B04", None, status=404)
    server.fail("S2A-east_B08", None, status=503, from_byte=BEYOND_HEADER)
    items = guarded_items()
    cube = build(items, sign=signer, on_error="nodata", reading=FEW, chunks=MANY)
    computed = cube.compute()
    for attrs in (cube.attrs, computed.attrs):
        failures = sorted(attrs["read_failures"])
        assert [failure.split(": ")[0] for failure in failures] == [
            f"S2A-east, {band}, {items[1].assets[band].href}" for band in ("B04", "B08")
        ]
        assert "sig=" not in "".join(failures)
    other = [3, 7]
    xr.testing.assert_equal(
        computed["S2L2A"].drop_isel(S2L2A_band=other), local["S2L2A"].drop_isel(S2L2A_band=other)
    )


def test_broken_file_is_named_from_a_cluster(server, guarded_items, signer, cluster):
    server.fail("S2A-west_B04", None, status=404)
    with pytest.raises(AssetError, match=r"S2A-west_B04\.tif of item 'S2A-west'.*404") as caught:
        load_on_cluster(guarded_items(), sign=signer, reading=FEW)
    assert "sig=" not in str(caught.value)


def load_on_cluster(items, **options):
    return build(items, **options).compute()
