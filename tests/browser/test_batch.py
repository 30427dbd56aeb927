"""Batch: a list from upload to zip, and lists that nobody should send."""

import json
import zipfile

import pytest
from playwright.sync_api import Page, expect

from concept_erase.adapter import Adapter

from . import hostile, studio
from .demo import FOR_SHOW

LIST = (
    "target;kind;anchor;tags\r\n"
    "rocket;object;car;toys\r\n"
    ";object;car;\r\n"
    "guitar;object;bell;toys\r\n"
    "cat;nonsense;dog;\r\n"
)  # fmt: skip


def upload(page: Page, name: str, content: bytes) -> None:
    studio.tab(page, "Batch")
    page.locator("#batch-list input[type=file]").set_input_files(
        {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    )


def run(page: Page, pictures: int) -> None:
    """Erase the list that was uploaded."""
    studio.advanced(page, "batch", pictures=pictures, **({} if FOR_SHOW else {"steps": 6}))
    page.locator("#batch-go").click()


def checked(page: Page) -> None:
    expect(studio.state(page, "batch")).to_have_attribute("data-state", "checked", timeout=30_000)


def test_list_from_upload_to_zip(page, tmp_path, demo):
    upload(page, "mine.csv", b"\xef\xbb\xbf" + LIST.encode())
    checked(page)
    rows = page.locator("#batch-rows tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("rocket")
    problems = page.locator("#batch-problems tbody tr")
    expect(problems).to_have_count(2)
    expect(problems.nth(0)).to_contain_text("3")
    expect(problems.nth(0)).to_contain_text("target")
    expect(problems.nth(1)).to_contain_text("5")
    expect(problems.nth(1)).to_contain_text("nonsense")
    expect(page.locator("#batch-plan")).to_contain_text("2 adapters")

    run(page, 2)
    studio.running(page, "batch")
    expect(page.locator("#batch-queue")).to_contain_text("rocket")
    studio.ended(page, "batch")
    expect(page.locator("#batch-words")).to_contain_text("2 concepts erased")
    expect(page.locator("#batch-results")).to_contain_text("guitar")
    expect(page.locator("#batch-gallery img").first).to_be_visible()
    page.locator("#batch-pack").click()
    with page.expect_download() as waiting:
        page.locator("#batch-zip").click()
    waiting.value.save_as(tmp_path / "all.zip")

    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert all(not name.startswith(("/", "..")) and ".." not in name for name in archive.namelist())
        archive.extractall(tmp_path / "all")
    (index,) = (tmp_path / "all").rglob("index.json")
    told = json.loads(index.read_text())
    assert [e["target"] for e in told["entries"] if e["state"] == "done"] == ["rocket", "guitar"]
    for entry in [*told["entries"], *told["joint"]]:
        adapter = Adapter.load(index.parent / entry["folder"] / entry["adapter"])
        assert {c.target for c in adapter.concepts} <= {"rocket", "guitar"}
    assert (index.parent / "index.html").is_file()
    assert demo.workers() == []


def test_last_batch_is_there_after_a_reload(page):
    """Runs after the one above in this file; alone, there is nothing to see yet."""
    studio.tab(page, "Batch")
    if studio.state(page, "batch").get_attribute("data-state") == "idle":
        pytest.skip("no batch was run before this test")
    studio.ended(page, "batch")
    expect(page.locator("#batch-words")).to_contain_text("2 concepts erased")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        pytest.param("bomb.yaml", hostile.YAML_BOMB.encode(), "", id="yaml bomb"),
        pytest.param("tag.yaml", hostile.YAML_TAG.encode(), "", id="yaml tag"),
        pytest.param("list.csv", b"PK\x03\x04" + bytes(100), "archive", id="zip as csv"),
        pytest.param("list.csv", b"", "empty", id="empty"),
        pytest.param("list.csv", b"\x00\xff\xfe\x9f" * 50, "", id="noise"),
        pytest.param("list.csv", b"colour,shape\nred,cat\n", "target", id="no target column"),
        pytest.param("huge.txt", b"cat\n" * 400_000, "", id="too large"),
    ],
)
def test_lists_that_cannot_be_read(page, name, content, word, tmp_path):
    upload(page, name, content)
    studio.refused(page, "batch", word)
    expect(studio.state(page, "batch")).not_to_contain_text("Something went wrong")
    expect(page.locator("#batch-go")).to_be_disabled()


@pytest.mark.parametrize("name", ["adapter.pt", "list.zip", "list.exe"])
def test_other_files_are_not_taken(page, name, tmp_path):
    canary = tmp_path / "ran"
    upload(page, name, hostile.zipped() if name.endswith("zip") else hostile.pickled(canary))
    expect(page.get_by_text("Invalid file type").or_(studio.state(page, "batch").locator(".ce-bad"))).to_be_visible()
    expect(page.locator("#batch-go")).to_be_disabled()
    assert not canary.exists()


def test_formulas_and_markup_in_cells_are_text(page):
    cells = [hostile.FORMULA, hostile.SCRIPT, "+1+1", "@SUM(A1)", "-2", "{{7*7}}", "${7*7}"]
    lines = ["target"] + ['"' + cell.replace('"', '""') + '"' for cell in cells]
    upload(page, "cells.csv", "\n".join(lines).encode())
    checked(page)
    shown = page.locator("#batch-rows, #batch-problems").all_inner_texts()
    for cell in ("HYPERLINK", "<script>alert", "{{7*7}}", "${7*7}"):
        assert any(cell in text for text in shown), cell
    assert page.locator("img[src=x], #batch-checked script").count() == 0


def test_bidi_and_over_long_rows_are_named(page):
    upload(page, "rows.jsonl", "\n".join(json.dumps({"target": t}) for t in ("cat", hostile.BIDI, "x" * 5000)).encode())
    checked(page)
    expect(page.locator("#batch-problems tbody tr")).to_have_count(2)
    expect(page.locator("#batch-rows tbody tr")).to_have_count(1)
