"""The contact sheet of a dataset: by both clients, and by the command."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import billhook
from tests.client.command import Command
from tests.client.either import Either
from tests.client.fake_server import SHEET, FakeServer


@pytest.fixture
def dataset_id(run: Command, data_file: Path) -> str:
    found: str = run("datasets", "add", data_file, "--json").document["id"]
    return found


def test_it_is_saved_under_the_name_that_was_given_or_the_datasets(
    client: Either, dataset_id: str, tmp_path: Path
) -> None:
    file = client.dataset_contact_sheet(dataset_id, tmp_path / "sheet.png")
    assert file.path.read_bytes() == SHEET
    assert (file.sha256, file.bytes) == (hashlib.sha256(SHEET).hexdigest(), len(SHEET))
    (tmp_path / "folder").mkdir()
    assert client.dataset_contact_sheet(dataset_id, tmp_path / "folder").path.name == f"{dataset_id}.png"
    assert client.dataset_contact_sheet(dataset_id).path == Path(f"{dataset_id}.png")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".part")) == sorted(
        ["sheet.png", f"{dataset_id}.png"]
    )


def test_a_dataset_is_waited_for_and_a_refused_one_says_why(
    client: Either, fake: FakeServer, dataset_id: str, tmp_path: Path
) -> None:
    fake.datasets[dataset_id].update(state="checking", summary=None)
    assert client.dataset_contact_sheet(dataset_id, tmp_path / "sheet.png").bytes == len(SHEET)
    fake.datasets[dataset_id].update(state="refused", refusal={"code": "x", "message": "it is empty", "faults": []})
    with pytest.raises(billhook.UploadRefused, match="it is empty"):
        client.dataset_contact_sheet(dataset_id, tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_the_command(run: Command, fake: FakeServer, dataset_id: str) -> None:
    shown = run("datasets", "show", dataset_id, "--contact-sheet", "sheet.png")
    assert (shown.code, shown.out) == (0, f"sheet.png: {len(SHEET)} B\n")
    assert Path("sheet.png").read_bytes() == SHEET
    document = run("datasets", "show", dataset_id, "--contact-sheet", "sheet.png", "--json").document
    assert (document["output"], document["bytes"]) == ("sheet.png", len(SHEET))
    fake.has_sheets = False
    gone = run("datasets", "show", dataset_id, "--contact-sheet", "none.png")
    assert (gone.code, "it is not_found" in gone.err, Path("none.png").exists()) == (2, True, False)
    nowhere = run("datasets", "show", dataset_id, "--contact-sheet", "no/such/folder.png")
    assert (nowhere.code, "cannot be written" in nowhere.err) == (2, True)
