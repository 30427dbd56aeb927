"""No place of this computer is told: not in a text, not in an answer of the server."""

import json
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("gradio", reason="the demo needs gradio")

import httpx

from demos import app
from demos.places import ALIAS, unplaced, without_places

HOME = Path.home()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{ROOT}/lists/mine.csv is not UTF-8; read as Windows-1252.", "mine.csv is not UTF-8; read as Windows-1252."),
        (f"'{HOME}/a b/x.csv' is a link", "'x.csv' is a link"),
        ("/etc/passwd has no model_index.json", "passwd has no model_index.json"),
        ("a disk error: [Errno 28] '/tmp/erase/x/y.tmp'", "a disk error: [Errno 28] 'y.tmp'"),
        (f"another demo works in {ROOT}; stop it", f"another demo works in {ROOT.name}; stop it"),
        (f"see {sys.prefix}/lib/python/x.py, line 3", "see x.py, line 3"),
        (r"C:\Users\Ann\lists\mine.csv is empty.", "mine.csv is empty."),
        ("AC/DC and /imagine a cat, 9/10, and/or", "AC/DC and /imagine a cat, 9/10, and/or"),
        ("name/model of https://example.org/etc/x, not /", "name/model of https://example.org/etc/x, not /"),
        ("/nowhere/at/all stays", "/nowhere/at/all stays"),
        ("", ""),
    ],
)
def test_paths_become_names(text, told):
    assert unplaced(text) == told


def test_values_of_any_shape():
    file = {"path": "/tmp/x/y.zip", "url": "/gradio_api/file=/tmp/x/y.zip", "meta": {"_type": "gradio.FileData"}}
    value = {"a": ["/etc/passwd", 1, None], "b": {"scorer": f"{HOME}/models/clip"}, "file": file}
    assert without_places(value) == {"a": ["passwd", 1, None], "b": {"scorer": "clip"}, "file": file}


# -- the server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo in this process, in a folder whose name must be escaped in addresses: (page, address, folder)."""
    folder = tmp_path_factory.mktemp("ä studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "put back afterwards")
        page, address = app.launch(port=app.free_port("127.0.0.1"), folder=folder, pictures=4, steps=2)
        yield page, address, folder
        page.studio.close()
        page.close(verbose=False)


@pytest.fixture(scope="module")
def web(demo):
    with httpx.Client(base_url=demo[1], trust_env=False, timeout=30) as made:
        yield made


def places(text: str) -> list[str]:
    """Folders of this computer that a text names, in any of the forms it may do so."""
    known = {str(p) for p in (HOME, ROOT, Path(sys.prefix), Path(sys.base_prefix), Path("/tmp")) if len(p.parts) > 1}
    plain = text.replace("\\/", "/").replace("%2F", "/")
    found = [place for place in known if re.search(re.escape(place) + r"(?![\w-])", plain)]
    return found + re.findall(r"/(?:home|root|usr|var|work|opt)/[\w./-]+", plain)


def upload(web, name: str, content: bytes) -> str:
    answer = web.post("gradio_api/upload", files={"files": (name, content)})
    assert answer.status_code == 200
    assert places(answer.text) == []
    return answer.json()[0]


def call(web, name: str, *values) -> str:
    """The events that a call ends with."""
    asked = web.post(f"gradio_api/call/{name}", json={"data": list(values)})
    if asked.status_code != 200:
        return asked.text
    return web.get(f"gradio_api/call/{name}/{asked.json()['event_id']}").text


LISTS = {
    "latin-1": ("list.csv", "target\nPaul Cézanne\nnoto\n".encode("latin-1")),
    "no row": ("list.csv", b"target;kind\n;style\n"),
    "empty": ("list.csv", b""),
    "no column": ("list.csv", b"colour,shape\nred,cat\n"),
    "broken yaml": ("list.yaml", b"- target: [\n"),
    "archive": ("list.csv", b"PK\x03\x04" + bytes(50)),
    "noise": ("list.txt", b"\x00\xff\xfe\x9f" * 50),
    "json": ("list.jsonl", b'{"target": 3'),
    "formula": ("list.csv", b"target\n=1+2\ncat\n"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_are_named_as_they_were_uploaded(web, kind):
    path = upload(web, *LISTS[kind])
    assert path.startswith(f"{ALIAS}/uploads/")
    told = call(web, "check_list", {"path": path, "meta": {"_type": "gradio.FileData"}}, "uce", {}, 0, -1, "")
    assert places(told) == []
    assert "event: complete" in told or "event: error" in told
    if kind == "latin-1":
        assert "event: complete" in told
        assert "list.csv" in told


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("erase", [["cat"], "style", [], "", "uce", {}, 0, -1, "/etc", "", False]),
        ("erase", [["cat"], "style", [], "", "uce", {}, 0, -1, str(ROOT), "", False]),
        ("erase", [["cat"], "style", [], "", "uce", {}, 0, -1, "", "/no/such/scorer", False]),
        ("erase", [["cat"], "nonsense", [], "", str(ROOT), {str(HOME): 1}, 0, -1, "", "", False]),
        ("recognise", [[{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}], "", ""]),
        ("recognise", [[{"path": f"{ALIAS}/../x.png", "meta": {"_type": "gradio.FileData"}}], "", ""]),
        ("recognise", [["nothing"], "", ""]),
        ("check_list", [{"path": f"{ALIAS}/jobs/x.csv", "meta": {"_type": "gradio.FileData"}}, "uce", {}, 0, -1, ""]),
        ("batch", [f"{ROOT}/list.csv", "", "uce", {}, 0, -1, "", "", False]),
        ("compare", ["a cat", ["unknown"], 0, 1, str(HOME), -1]),
        ("download", ["unknown"]),
        ("delete", [str(HOME)]),
        ("interference", [["a", "b"], "/etc"]),
        ("library", []),
    ],
)
def test_no_error_of_a_call_names_a_place(web, name, values):
    told = call(web, name, *values)
    assert told
    assert places(told) == []


@pytest.mark.parametrize(
    "path", ["", "config", "gradio_api/info", "gradio_api/file=/studio/jobs/x", "nothing", "login"]
)
def test_no_page_names_a_place(web, path):
    assert places(web.get(path).text) == []


def test_files_go_in_and_out_under_the_other_name(demo, web):
    """What is handed out can be fetched; the same bytes, even where they hold the folder's own name."""
    content = f"target\n{demo[2]}\n".encode()
    path = upload(web, "list.csv", content)
    fetched = web.get(f"gradio_api/file={path}")
    assert fetched.status_code == 200
    assert fetched.content == content
    (kept,) = demo[2].glob(path.removeprefix(f"{ALIAS}/"))
    assert kept.read_bytes() == content


@pytest.mark.parametrize("path", ["jobs/x/job.json", ".lock", "../secret", "uploads/../jobs/x/job.json", "erasures/a"])
def test_the_other_name_opens_nothing_else(demo, web, path):
    for name in ("jobs/x/job.json", "erasures/a/report.json"):
        (demo[2] / name).parent.mkdir(parents=True, exist_ok=True)
        (demo[2] / name).write_text("{}")
    assert web.get(f"gradio_api/file={ALIAS}/{path}").status_code in (403, 404)


def test_a_client_takes_a_file_home(demo, tmp_path):
    """`gradio_client` sends a list and fetches a zip by what the server calls them."""
    from gradio_client import Client, handle_file

    from concept_erase import erase

    made = erase("noto", out=demo[2] / "erasures" / "noto-1", n=0)
    assert made.files
    client = Client(demo[1], verbose=False, download_files=str(tmp_path))
    (item,) = client.predict(api_name="/library")
    assert places(json.dumps(item)) == []
    assert Path(client.predict(item["id"], api_name="/download")).stat().st_size > 1000
    file = tmp_path / "mine.csv"
    file.write_text("target\nnoto\n")
    assert client.predict(handle_file(str(file)), pictures=0, api_name="/check_list")["rows"] == [2]
