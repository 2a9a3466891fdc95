"""Released weights come through the real hub client, whole and verified, or not at all."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from terramind_cube.model import hub as hub_module
from terramind_cube.model.hub import (
    PretrainedFile,
    WeightsError,
    file_sha256,
    resolve_weights,
    resolved_revision,
)
from tests.model.hub_server import HubServer

FILE = "Weights_v1.pt"
CONTENT = random.Random(3).randbytes(6000)
COMMIT = "c" * 40
PINNED = PretrainedFile("owner/model", FILE, COMMIT)
BRANCH = PretrainedFile("owner/model", FILE, "main")


def _fetch(pretrained=PINNED):
    return resolve_weights("pretrained", pretrained=pretrained, name="terramind_test")


def _files(cache):
    return [
        path
        for path in cache.rglob("*")
        if path.is_file() and path.stat().st_size and ".locks" not in path.parts
        and path.name not in ("CACHEDIR.TAG", "main")
    ]  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Give the hub's client an empty cache, no patience and no proxy."""
    folder = tmp_path / "hub"
    # The client keeps more than the cache under the user's home.
    home = constants.HF_HOME
    for name, value in list(vars(constants).items()):
        if isinstance(value, str) and value.startswith(home):
            monkeypatch.setattr(constants, name, value.replace(home, str(tmp_path), 1))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    huggingface_hub.close_session()
    yield folder
    huggingface_hub.close_session()


def _point_client_at(url, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def server(cache, monkeypatch):
    with HubServer(commit=COMMIT) as hub:
        hub.files[FILE] = CONTENT
        _point_client_at(hub.url, monkeypatch)
        yield hub


@pytest.mark.parametrize("pretrained", [PINNED, BRANCH])
def test_download_gives_the_file_and_its_commit(server, cache, pretrained):
    path = _fetch(pretrained)
    assert path.read_bytes() == CONTENT
    assert path.name == FILE
    assert path.is_relative_to(cache)
    assert resolved_revision(path) == COMMIT
    wanted = f"/owner/model/resolve/{pretrained.revision}/{FILE}"
    assert [request[:2] for request in server.requests] == [("HEAD", wanted), ("GET", wanted)]


def test_pinned_file_is_fetched_once_and_then_needs_no_network(server, monkeypatch):
    first = _fetch()
    asked = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert _fetch() == first
    assert len(server.requests) == asked


def test_lost_connection_is_resumed(server):
    server.drops = 1
    assert _fetch().read_bytes() == CONTENT
    assert [request[2] for request in server.requests] == [None, None, "bytes=3000-"]


@pytest.mark.parametrize(
    "fault",
    [
        {"deliverable": 2000},
        {"deliverable": 0},
        {"announced_extra": 100},
        {"sent_instead": {FILE: CONTENT[:2000]}},
        {"sent_instead": {FILE: CONTENT[::-1]}},
    ],
    ids=["short read", "nothing", "length too large", "shorter file", "other bytes"],
)
def test_broken_download_is_an_error_and_the_next_one_is_whole(server, cache, fault):
    healthy = {name: getattr(server, name) for name in fault}
    vars(server).update(fault)
    with pytest.raises(WeightsError) as caught:
        _fetch()
    for part in ("terramind_test", f"{server.url}/owner/model", FILE, COMMIT, "weights=PATH"):
        assert part in str(caught.value)
    assert str(cache / "models--owner--model" / "snapshots" / COMMIT / FILE) in str(caught.value)
    vars(server).update(healthy)
    assert _fetch().read_bytes() == CONTENT


def test_short_read_leaves_nothing_in_the_cache(server, cache):
    server.deliverable = 2000
    with pytest.raises(WeightsError) as caught:
        _fetch()
    assert caught.value.__cause__ is not None
    assert _files(cache) == []


def test_damaged_cache_is_replaced_from_the_hub(server):
    path = _fetch()
    path.resolve().write_bytes(CONTENT[:100])
    assert _fetch().read_bytes() == CONTENT


def test_damaged_cache_is_an_error_offline(server, monkeypatch):
    path = _fetch()
    path.resolve().write_bytes(CONTENT[:100])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="is damaged and cannot be replaced") as caught:
        _fetch()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("pretrained", "reason"),
    [
        (PretrainedFile("owner/other", FILE, COMMIT), "RepositoryNotFoundError"),
        (PretrainedFile("owner/model", FILE, "d" * 40), "RevisionNotFoundError"),
        (PretrainedFile("owner/model", "Other.pt", COMMIT), "RemoteEntryNotFoundError"),
    ],
)
def test_what_the_hub_lacks_is_named(server, cache, pretrained, reason):
    with pytest.raises(WeightsError, match=reason) as caught:
        _fetch(pretrained)
    assert f"{server.url}/{pretrained.repository}" in str(caught.value)
    assert pretrained.filename in str(caught.value)
    assert "Please" not in str(caught.value)
    assert _files(cache) == []


def test_login_page_instead_of_the_hub_is_an_error(server, cache):
    server.is_portal = True
    with pytest.raises(WeightsError, match="X-Repo-Commit"):
        _fetch()
    assert _files(cache) == []


@pytest.mark.parametrize("is_offline", [True, False], ids=["offline mode", "no connection"])
def test_offline_error_says_where_to_put_the_file_and_that_works(cache, monkeypatch, is_offline):
    with HubServer() as gone:
        _point_client_at(gone.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    with pytest.raises(WeightsError) as caught:
        _fetch()
    assert ("offline mode is enabled" if is_offline else "ConnectError") in str(caught.value)
    place = Path(str(caught.value).partition("put it at ")[2].partition(" (set HF_HOME")[0])
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert _fetch() == place
    assert resolved_revision(place) == COMMIT


def test_offline_error_of_a_branch_names_the_folder_to_copy(server, cache, monkeypatch, tmp_path):
    copied = _fetch(BRANCH).parents[2]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(WeightsError) as caught:
        _fetch(BRANCH)
    place = Path(str(caught.value).partition("copy the folder ")[2].partition(" from ")[0])
    place.parent.mkdir()
    copied.rename(place)
    assert _fetch(BRANCH).read_bytes() == CONTENT


def test_environment_of_the_client_is_honoured(tmp_path):
    program = (
        "from terramind_cube.model.hub import PretrainedFile, resolve_weights\n"
        f"print(resolve_weights('pretrained', pretrained={PINNED!r}, name='x'))"
    )
    with HubServer(commit=COMMIT) as hub:
        hub.files[FILE] = CONTENT
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        ended = subprocess.run(
            [sys.executable, "-c", program], env=environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    place = tmp_path / "hub" / "models--owner--model" / "snapshots" / COMMIT / FILE
    assert ended.stdout.strip() == str(place), ended.stderr
    assert place.read_bytes() == CONTENT


def test_path_of_a_file_is_returned_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for suffix in (".pt", ".pth", ".bin", ".safetensors", ".PT"):
        path = tmp_path / f"w{suffix}"
        path.write_bytes(b"x")
        assert resolve_weights(path, pretrained=None, name="x") == path
        assert resolve_weights(path.name, pretrained=PINNED, name="x") == path


def test_absent_path_is_named_with_the_known_types(tmp_path):
    with pytest.raises(FileNotFoundError, match="safetensors") as caught:
        resolve_weights(tmp_path / "absent.pt", pretrained=None, name="terramind_test")
    assert str(tmp_path / "absent.pt") in str(caught.value)
    assert "terramind_test" in str(caught.value)


@pytest.mark.parametrize("name", ["weights.onnx", "weights", "weights.pt.zip"])
def test_another_file_type_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match="not a weights file"):
        resolve_weights(tmp_path / name, pretrained=None, name="x")


def test_folder_is_refused(tmp_path):
    (tmp_path / "weights.pt").mkdir()
    with pytest.raises(WeightsError, match="is a folder"):
        resolve_weights(tmp_path / "weights.pt", pretrained=None, name="x")


def test_model_without_released_weights_says_so():
    with pytest.raises(WeightsError, match="No weights are released for terramind_nano"):
        resolve_weights("pretrained", pretrained=None, name="terramind_nano")


def test_file_outside_the_cache_has_no_revision(tmp_path):
    assert resolved_revision(tmp_path / "w.pt") is None
    assert resolved_revision(tmp_path / "snapshots" / "main" / "w.pt") is None
    assert resolved_revision(tmp_path / "snapshots" / COMMIT / "sub" / "w.pt") == COMMIT


def test_sha256_follows_the_content(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(CONTENT)
    assert file_sha256(path) == hashlib.sha256(CONTENT).hexdigest()
    path.write_bytes(CONTENT + b"x")
    assert file_sha256(str(path)) == hashlib.sha256(CONTENT + b"x").hexdigest()
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "absent")


def test_sha256_reads_a_file_once_among_threads(tmp_path, monkeypatch):
    path = tmp_path / "w.pt"
    path.write_bytes(CONTENT)
    link = tmp_path / "link.pt"
    link.symlink_to(path)
    digested = []

    def digest(file, name):
        digested.append(name)
        threading.Event().wait(0.1)
        return hashlib.new(name, file.read())

    monkeypatch.setattr(hub_module.hashlib, "file_digest", digest)
    threads = [threading.Thread(target=file_sha256, args=(p,)) for p in [path, link] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digested == ["sha256"]
