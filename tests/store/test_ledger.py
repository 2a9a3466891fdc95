"""The ledger: fingerprints that tell settings apart, receipts that are whole."""

import json

import pytest

from terramind_cube.store import ledger


def make_store(tmp_path, **fingerprint):
    ledger.start_run(tmp_path, fingerprint, regions=2)
    return tmp_path


def test_every_difference_is_listed_with_both_values(tmp_path):
    store = make_store(tmp_path, seed=1, model={"name": "nano", "sha256": "a"}, steps=(1, 2))
    with pytest.raises(ValueError, match="other settings") as refusal:
        ledger.check_run(store, {"seed": 2, "model": {"name": "nano", "sha256": "b"}, "top_p": 0.8})
    message = str(refusal.value)
    assert "seed: the store has 1, this run has 2" in message
    assert 'model.sha256: the store has "a", this run has "b"' in message
    assert "steps: the store has [1, 2], this run has nothing" in message
    assert "top_p: the store has nothing, this run has 0.8" in message
    assert "model.name" not in message


def test_tuples_and_key_order_make_no_difference(tmp_path):
    store = make_store(tmp_path, bbox=(1, 2), model={"a": 1, "b": 2})
    run = ledger.check_run(store, {"model": {"b": 2, "a": 1}, "bbox": [1, 2]})
    assert run.status == "running"
    assert run.regions == 2


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), object()])
def test_a_value_that_json_cannot_hold_is_named(value):
    with pytest.raises(ValueError, match=r"fingerprint\['weights'\]"):
        ledger.normalize_fingerprint({"weights": value})


def test_receipts_come_back(tmp_path):
    store = make_store(tmp_path)
    assert ledger.completed(store) == set()
    written = ledger.write_receipt(
        store, "y0-8", region={"y": (0, 8)}, seconds=0.25, sha256={"LULC": "00"}
    )
    assert ledger.completed(store) == {"y0-8"}
    assert ledger.read_receipts(store) == [written]


def test_a_half_written_receipt_is_none(tmp_path):
    store = make_store(tmp_path)
    (store / "ledger" / "receipts" / "y0-8.json.77.partial").write_text('{"key"')
    assert ledger.completed(store) == set()
    assert ledger.read_receipts(store) == []


def test_a_finished_run_says_so(tmp_path):
    store = make_store(tmp_path, seed=3)
    ledger.finish_run(store)
    run = ledger.read_run(store)
    assert run.status == "complete"
    assert run.finished_at >= run.started_at
    assert run.fingerprint == {"seed": 3}


@pytest.mark.parametrize("content", [None, "", "[]", json.dumps({"format": "another"})])
def test_a_foreign_folder_is_not_a_store(tmp_path, content):
    (tmp_path / "ledger").mkdir()
    if content is not None:
        (tmp_path / "ledger" / "run.json").write_text(content)
    with pytest.raises(ValueError, match="is not a store that terramind_cube wrote"):
        ledger.read_run(tmp_path)


def test_an_absent_store_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no store at"):
        ledger.read_run(tmp_path / "nowhere")
