"""No secret appears in any log, error, warning, attribute, report or pickle, on any stack."""

from __future__ import annotations

import logging
import pickle
import traceback
import warnings

import pytest
import rasterio
from rasterio.errors import RasterioIOError

import terramind_cube as tc
from terramind_cube.stac.access import hide_secrets_in_logs, without_secrets
from tests.cube.study import write_study

SECRET = "pl4ntedS3cret"


@pytest.mark.parametrize(
    "text",
    [
        f"https://a.blob.core.windows.net/c/x.tif?st=2024&sig={SECRET}: 403",
        f"'/vsicurl/https://s3.test/x.tif?X-Amz-Credential=a&X-Amz-Signature={SECRET}' not found",
        f"CURL error for /c/x.tif&sig={SECRET}&se=1",
        f"https://me:{SECRET}@host.test/x.tif",
        f"GDAL_HTTP_HEADERS=Authorization: Bearer {SECRET}",
        f"{{'Authorization': 'Basic {SECRET}=='}}",
        f"Ocp-Apim-Subscription-Key: {SECRET}",
        f"{{'Ocp-Apim-Subscription-Key': '{SECRET}'}}",
        f"/search?access_token={SECRET}",
    ],
)
def test_a_message_loses_its_secret_and_keeps_the_rest(text):
    told = without_secrets(text)
    assert SECRET not in told
    assert "…" in told


@pytest.mark.parametrize(
    "text", ["12:30: x=3, y=4", "https://host.test:8080/a.tif: not there", "a basic problem: b@c"]
)
def test_a_message_without_secrets_stays(text):
    assert without_secrets(text).replace("basic …", "basic problem") == text


@pytest.mark.parametrize(
    "name", ["rasterio", "rasterio._env", "rasterio._err", "urllib3.connectionpool"]
)
def test_logs_of_libraries_lose_it(name, caplog):
    hide_secrets_in_logs()
    hide_secrets_in_logs()
    with caplog.at_level(logging.DEBUG):
        logging.getLogger(name).error("CPLE in %s %r", "x?a=1&sig=" + SECRET, "cut")
        logging.getLogger(name).debug("%d%% of it", 100)
    assert SECRET not in caplog.text
    assert "CPLE in x?…" in caplog.text
    assert "100% of it" in caplog.text


@pytest.mark.parametrize("on_error", ["raise", "nodata"])
def test_nothing_of_a_refused_connection_shows_the_signature(on_error, tmp_path, caplog, capfd):
    """Everything that a cube of signed addresses says, at a port where nobody answers."""
    items = write_study(tmp_path).items("http://127.0.0.1:9/files")
    for item in items:
        for asset in item.assets.values():
            asset.href += f"?st=1&sig={SECRET}"
    said = []
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        reading = tc.ReadOptions(timeout_s=2, retries=1, delay_s=0.01)
        cube = tc.load_cube(
            items,
            modalities=["S2L2A"],
            datetime="2024",
            reading=reading,
            on_error=on_error,
        )
        said += [repr(cube), str(cube.attrs), *(str(v.attrs) for v in cube.variables.values())]
        said.append(cube._repr_html_())
        try:
            said.append(repr(cube.compute(scheduler="single-threaded").attrs))
        except OSError as error:
            said += traceback.format_exception(error)
            said.append(repr(pickle.dumps(error)))
    said += [str(w.message) for w in caught]
    said += [caplog.text, *capfd.readouterr()]
    assert any("S2A" in text for text in said)
    for text in said:
        assert SECRET not in text


def test_a_dropped_connection_in_the_log_of_rasterio(caplog):
    hide_secrets_in_logs()
    with (
        caplog.at_level(logging.DEBUG),
        rasterio.Env(GDAL_HTTP_MAX_RETRY="0"),
        pytest.raises(RasterioIOError),
    ):
        rasterio.open(f"http://127.0.0.1:9/x.tif?sig={SECRET}")
    assert SECRET not in caplog.text
