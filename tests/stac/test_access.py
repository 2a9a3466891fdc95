"""How addresses are read: keys, tokens, options."""

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from terramind_cube.stac import access
from terramind_cube.stac.access import BlobSigner, find_access, without_secrets

BLOB = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/06/V/VN/B02_10m.tif"


@pytest.fixture
def service(monkeypatch):
    """A token service: gives out numbered tokens that last an hour, slowly."""
    asked = []

    class Answer:
        def __init__(self, number, life_s):
            self.number, self.life_s = number, life_s

        status_code = 200

        def raise_for_status(self):
            pass

        def json(self):
            end = datetime.now(UTC) + timedelta(seconds=self.life_s)
            return {
                "token": f"sig={self.number}",
                "msft:expiry": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }

    def get(url, headers, timeout):
        assert timeout > 0
        time.sleep(0.02)
        asked.append((url, dict(headers)))
        return Answer(len(asked), get.life_s)

    get.life_s = 3600
    monkeypatch.setattr(access.requests, "get", get)
    monkeypatch.setattr(access, "_TOKENS", {})
    monkeypatch.setattr(access, "_REFUSED", set())
    get.asked = asked
    return get


def test_one_token_serves_all_files_of_a_container(service, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    signer = BlobSigner("https://pc.example/sas", "SOME_KEY")
    assert signer(BLOB) == f"{BLOB}?sig=1"
    # A signature of the search is kept until it is refused.
    other_band = BLOB.replace("B02", "B03")
    signed = f"{other_band}?sig=old"
    assert signer(signed) == signed
    signer.renew(signed)
    assert signer(signed) == f"{other_band}?sig=1"
    other = BLOB.replace("sentinel2-l2/", "other/")
    assert signer(other).endswith("?sig=2")
    assert [url for url, _ in service.asked] == [
        "https://pc.example/sas/token/sentinel2l2a01/sentinel2-l2",
        "https://pc.example/sas/token/sentinel2l2a01/other",
    ]
    assert service.asked[0][1] == {"Ocp-Apim-Subscription-Key": "secret"}


def test_threads_ask_once(service):
    signer, found = BlobSigner("https://pc.example/sas"), []
    threads = [threading.Thread(target=lambda: found.append(signer(BLOB))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [f"{BLOB}?sig=1"] * 8


def test_token_is_renewed_before_it_ends_and_once_when_it_is_refused(service):
    signer = BlobSigner("https://pc.example/sas")
    service.life_s = 200  # less than the margin
    assert signer(BLOB).endswith("sig=1")
    service.life_s = 3600
    signed = signer(BLOB)
    assert signed.endswith("sig=2")
    # Several threads are refused with one token: the first of them renews it.
    signer.renew(signed)
    assert signer(BLOB).endswith("sig=3")
    signer.renew(signed)
    assert signer(BLOB).endswith("sig=3")


def test_other_token_service_is_named_in_the_environment(service, monkeypatch):
    monkeypatch.setenv("PC_SDK_SAS_URL", "http://127.0.0.1:8000/sas/token/")
    assert find_access(BLOB).signer(BLOB).endswith("?sig=1")
    (url, _), = service.asked  # fmt: skip
    assert url == "http://127.0.0.1:8000/sas/token/sentinel2l2a01/sentinel2-l2"


def test_blobs_of_others_stay_unsigned(service, monkeypatch):
    class Unknown:
        status_code = 404

    monkeypatch.setattr(access.requests, "get", lambda *_, **__: Unknown())
    mine = "https://mine.blob.core.windows.net/data/a.tif"
    signer = BlobSigner("https://pc.example/sas")
    assert signer(mine) == mine
    # One refused signature says nothing of the next.
    signer.renew(f"{mine}?sig=old")
    assert signer(f"{mine}?sig=new") == f"{mine}?sig=new"


def test_addresses_have_their_rows():
    assert find_access(BLOB).signer is not None
    assert find_access("https://sentinel-cogs.s3.us-west-2.amazonaws.com/a.tif").signer is None
    open_data = find_access("s3://copernicus-dem-30m/a.tif")
    href, options = open_data.choose("s3://copernicus-dem-30m/a.tif", None)
    assert (href, options["AWS_NO_SIGN_REQUEST"]) == ("s3://copernicus-dem-30m/a.tif", "YES")


def forget_keys(monkeypatch):
    for name in (*access._AWS_KEYS, *access._OTHER_KEYS, "CDSE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere")


def test_profile_or_role_counts_as_keys(monkeypatch):
    href = "s3://sentinel-s2-l1c/tiles/20/B02.jp2"
    forget_keys(monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "study")
    assert find_access(href).choose(href, None)[0] == href


def test_requester_pays_needs_keys(monkeypatch):
    href = "s3://sentinel-s2-l1c/tiles/20/B02.jp2"
    forget_keys(monkeypatch)
    with pytest.raises(PermissionError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        find_access(href).choose(href, None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert find_access(href).choose(href, None)[1]["AWS_REQUEST_PAYER"] == "requester"


def test_files_of_cdse_take_keys_or_a_token(monkeypatch):
    href, other = "s3://eodata/a/B02.jp2", "https://zipper.example/B02.jp2"
    forget_keys(monkeypatch)
    row = find_access(href)
    with pytest.raises(PermissionError, match="or CDSE_TOKEN"):
        row.choose(href, other)
    monkeypatch.setenv("CDSE_TOKEN", "abc")
    assert row.choose(href, other)[0] == other
    assert row.choose(href, other)[1]["GDAL_HTTP_HEADERS"] == "Authorization: Bearer abc"
    with pytest.raises(PermissionError):
        row.choose(href, None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    chosen, options = row.choose(href, other)
    assert chosen == href
    assert options["AWS_S3_ENDPOINT"] == "eodata.dataspace.copernicus.eu"
    assert options["AWS_VIRTUAL_HOSTING"] == "FALSE"


def test_messages_hold_no_secrets():
    text = f"Cannot read {BLOB}?st=1&sig=abc%2B= and 'https://x.org/b.tif?sig=z'; Bearer xyz"
    assert without_secrets(text) == (f"Cannot read {BLOB}?… and 'https://x.org/b.tif?…'; Bearer …")
