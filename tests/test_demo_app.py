"""The demo as a server: what it refuses, what it serves, and the calls of its API."""

import json
import os
import re
import subprocess
import sys
import time

import httpx
import pytest
from conftest import ROOT, python
from conftest import quick as quickly

pytest.importorskip("gradio", reason="the demo needs gradio")

from PIL import Image

from concept_erase import erase
from concept_erase.concepts import Concept
from concept_erase.errors import BusyError, InputError
from concept_erase.methods import available, describe
from demos import app, forms, guard, results, uploads
from demos.models import check_source, is_sensitive
from demos.studio import Defaults, Studio
from demos.view import esc


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo that runs in this process, small and quick: (page, address, folder)."""
    folder = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing may need the network, not even a proxy
        page, address = app.launch(port=app.free_port("127.0.0.1"), folder=folder, pictures=4, steps=2)
        yield page, address, folder
        page.studio.close()
        page.close(verbose=False)


@pytest.fixture(scope="module")
def client(demo):
    from gradio_client import Client

    return Client(demo[1], verbose=False)


@pytest.fixture(scope="module")
def web(demo):
    with httpx.Client(base_url=demo[1], trust_env=False, timeout=30) as made:
        yield made


def refused(client, match, *arguments, **named):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=f"(?i){match}") as caught:
        client.predict(*arguments, **named)
    assert "Traceback" not in str(caught.value)


# -- starting ------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    done = python("-X", "importtime", "demos/app.py", "--help", cwd=ROOT)
    assert "--folder" in done.stdout
    assert not re.search(r"\b(gradio|torch|diffusers)\b", done.stderr)


@pytest.mark.parametrize("how", [["demos/app.py"], ["-m", "demos.app"], ["-m", "concept_erase", "demo"]])
def test_a_host_that_others_reach_needs_a_password(how, tmp_path):
    done = python(*how, "--host", "0.0.0.0", "--folder", str(tmp_path / "x"), cwd=ROOT)
    assert done.returncode == 2
    assert "no password is set" in done.stderr
    assert "--auth" in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_every_other_host_needs_a_password(host):
    with pytest.raises(InputError, match="no password is set"):
        app.launch(host, folder="never")


@pytest.mark.parametrize("text", ["", "user", ":secret", "user:", "secret-without-colon"])
def test_a_malformed_password_is_refused_and_never_shown(text):
    with pytest.raises(InputError) as caught:
        app.auth_of(text, None)
    assert "secret" not in str(caught.value)


def test_passwords_come_from_option_file_or_environment(tmp_path, monkeypatch):
    file = tmp_path / "auth"
    file.write_text("ann:from file:with colon\n")
    assert app.auth_of(None, file) == ("ann", "from file:with colon")
    assert app.auth_of("bob:x", file) == ("bob", "x")
    monkeypatch.setenv(app.AUTH_VARIABLE, "eve:y")
    assert app.auth_of(None, None) == ("eve", "y")
    monkeypatch.delenv(app.AUTH_VARIABLE)
    assert app.auth_of(None, None) is None
    with pytest.raises(InputError, match="cannot be read"):
        app.auth_of(None, tmp_path / "nothing")


def test_a_second_demo_in_the_same_folder_is_refused(demo):
    with pytest.raises(BusyError, match="another demo works"):
        app.launch(folder=demo[2])
    done = python("demos/app.py", "--folder", str(demo[2]), cwd=ROOT)
    assert done.returncode == 75


def test_with_a_password_nothing_is_served_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "put back afterwards, for the demo of the other tests")
    page, address = app.launch(port=app.free_port("127.0.0.1"), folder=tmp_path, auth=("ann", "open sesame"))
    try:
        with httpx.Client(base_url=address, trust_env=False) as web:
            assert "window.gradio_config" in web.get("/").text
            for path in ("config", "gradio_api/info", f"gradio_api/file={tmp_path}/uploads/x"):
                assert web.get(path).status_code == 401
            call = web.post("gradio_api/call/library", json={"data": []})
            assert call.status_code == 401
            assert web.post("login", data={"username": "ann", "password": "wrong"}).status_code == 400
            assert web.post("login", data={"username": "ann", "password": "open sesame"}).status_code == 200
            assert web.get("config").status_code == 200
    finally:
        page.studio.close()
        page.close(verbose=False)


# -- what is served ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "{folder}/jobs/x/job.json",
        "{folder}/.lock", "{folder}/erasures/a/report.json", "{folder}/uploads/../jobs/x/job.json", "{cwd}/README.md",
        "{cwd}/demos/app.py",
    ],
)  # fmt: skip
def test_nothing_outside_the_uploads_is_served(demo, web, path):
    folder = demo[2]
    for name in ("jobs/x/job.json", "erasures/a/report.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    answer = web.get("gradio_api/file=" + path.format(folder=folder, cwd=ROOT))
    assert answer.status_code in (403, 404), answer.text[:200]
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/x", "https://example.org/x.png", "ftp://example.org/x", "file:///etc/passwd"]
)
def test_addresses_are_not_fetched(web, address):
    assert web.get(f"gradio_api/file={address}").status_code in (403, 404)
    for kind in ("gradio.FileData", "other"):
        data = [[{"path": address, "meta": {"_type": kind}}], "", ""]
        assert web.post("gradio_api/call/recognise", json={"data": data}).status_code == 400


def test_strange_names_of_the_server_are_refused(demo, web):
    port = demo[1].rstrip("/").rpartition(":")[2]
    for host, expected in (("evil.example", 421), (f"evil.example:{port}", 421), ("", 421), (f"localhost:{port}", 200)):
        assert web.get("/", headers={"Host": host}).status_code == expected


def test_the_page_may_load_nothing_from_elsewhere(web):
    answer = web.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert 'lang="en"' in answer.text
    for font in ("fonts.googleapis", "fonts.gstatic"):
        assert font not in answer.text


def test_calls_of_unbearable_size_are_refused(web, monkeypatch):
    assert web.post("gradio_api/call/library", content=b"x" * (2**20 + 1)).status_code == 413
    monkeypatch.setattr(guard, "MOST_UPLOAD", 2**20)
    big = {"file": ("a.png", b"x" * 2**20)}
    assert web.post("gradio_api/upload", files=big).status_code == 413


def test_uploads_end_when_the_folder_is_full(web, monkeypatch):
    small = {"files": ("a.png", b"x" * 100)}
    assert web.post("gradio_api/upload", files=small).status_code == 200
    monkeypatch.setattr(uploads, "MOST_KEPT", 100)
    assert web.post("gradio_api/upload", files=small).status_code == 507


def test_uploads_of_an_earlier_run_are_removed(tmp_path):
    (tmp_path / "uploads" / "abc").mkdir(parents=True)
    (tmp_path / "uploads" / "abc" / "a.png").write_bytes(b"x")
    Studio(tmp_path).close()
    assert list((tmp_path / "uploads").iterdir()) == []


# -- the API -------------------------------------------------------------------------------------------------------


def test_the_documented_calls_are_all_there_are(demo, client):
    named = set(client.view_api(return_format="dict", print_info=False)["named_endpoints"])
    documented = set(re.findall(r"api_name=\"(/\w+)\"", (ROOT / "demos" / "README.md").read_text()))
    assert named == documented


def test_an_erasure_by_api_and_what_comes_of_it(demo, client):
    """Erase without scores, look at the job, try it out, compose, take it home, delete it."""
    quick = {"anchor": "fluent", "settings": {"contexts": 6, "preserve_prompts": 60}, "pictures": 0, "steps": 2}
    job = client.predict(["twemoji"], **quick, api_name="/erase")
    deadline = time.monotonic() + 120
    while (seen := client.predict(job["id"], api_name="/job"))["state"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert seen["state"] == "done", seen["message"]
    ids = [seen["adapter"]["id"]]
    erase(Concept("blob", anchor="fluent"), method=quickly("uce"), out=demo[2] / "erasures" / "blob", n=0)
    ids.append(client.predict(api_name="/library")[0]["id"])
    assert client.predict(["twemoji"], **quick, api_name="/erase")["state"] == "done", "not done twice"
    assert [item["id"] for item in client.predict(api_name="/library") if item["id"] in ids] == ids[::-1]

    drawn = client.predict("a twemoji cat", ids[:1], seed=3, steps=2, api_name="/compare")
    with Image.open(drawn["original"]) as original, Image.open(drawn["erased"]) as erased:
        assert original.size == erased.size == (64, 64)
        assert original.tobytes() != erased.tobytes()

    both = client.predict(ids, api_name="/compose")
    assert sorted(c["target"] for c in both["concepts"]) == ["blob", "twemoji"]
    assert both["scores"]["after"]["UA"]["n"] == 4
    moved = client.predict(ids, api_name="/interference")
    assert len(moved["adapters"]) == 2
    archive = client.predict(both["id"], api_name="/download")
    assert archive.endswith(".zip")
    client.predict(both["id"], api_name="/delete")
    assert both["id"] not in {item["id"] for item in client.predict(api_name="/library")}


def test_what_is_not_known_is_refused_and_erased_all_the_same(demo, client):
    """A name that nobody has: refused before any work; forced, it is made, and no score is called a success."""
    asked = {"anchor": "fluent", "settings": {"contexts": 6, "preserve_prompts": 60}, "pictures": 2, "steps": 1}

    def done(job):
        deadline = time.monotonic() + 240
        while (seen := client.predict(job["id"], api_name="/job"))["state"] in ("queued", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return seen

    first = done(client.predict(["Vrelm Quixby"], **asked, api_name="/erase"))
    assert (first["state"], first["refused"], first["adapter"]) == ("failed", True, None)
    assert "does not seem to know" in first["message"]
    again = client.predict(["Vrelm Quixby"], **asked, force=True, api_name="/erase")
    assert again["id"] != first["id"]
    assert demo[0].studio.forced(first["id"]).id == again["id"]  # what the button "Erase it all the same" asks for
    forced = done(again)
    assert (forced["state"], forced["refused"]) == ("done", False), forced["message"]
    item = demo[0].studio.library.get(forced["adapter"]["id"])
    assert item.report["knowledge"][0]["state"] == "unknown"
    assert item.report["scores"]["known"] is False
    assert "does not seem to know" in results.words(item, "erase")


def test_hostile_calls_get_a_clear_answer(client):
    refused(client, "Nothing to forget", [], api_name="/erase")
    refused(client, "blank", ["\u200b"], api_name="/erase")
    refused(client, "control", ["a\u202eb"], api_name="/erase")
    refused(client, "at most 40", [f"c{i}" for i in range(41)], api_name="/erase")
    refused(client, "at most 400|characters", ["x" * 5000], api_name="/erase")
    refused(client, "list of names", [{"a": 1}], api_name="/erase")
    refused(client, "kind is", ["noto"], "nonsense", api_name="/erase")
    refused(client, "no method", ["noto"], method="../uce", api_name="/erase")
    refused(client, "no setting", ["noto"], settings={"__class__": "x"}, api_name="/erase")
    refused(client, "too many or too long", ["noto"], settings={"ridge": "9" * 999}, api_name="/erase")
    refused(client, "at most 2000", ["noto"], pictures=5000, api_name="/erase")
    refused(client, "address is not fetched", ["noto"], model="https://example.org/m", api_name="/erase")
    refused(client, "neither a folder|no model_index", ["noto"], model="../../etc", api_name="/erase")
    refused(client, "scorer", ["noto"], scorer="x:/etc/passwd\0", api_name="/erase")
    refused(client, "no such job", "../../x", api_name="/job")
    refused(client, "prompt is empty", " ", ["x"], api_name="/compare")
    refused(client, "at most 1,000", "a" * 1001, ["x"], api_name="/compare")
    refused(client, "not in the library", "a cat", ["../x"], api_name="/compare")
    refused(client, "no such list", "jobs/lists/../../x.csv", api_name="/batch")
    refused(client, "no such adapter|not in the library", "/etc/passwd", api_name="/download")


def test_an_over_long_prompt_names_the_limit(demo, client):
    folder = demo[2] / "erasures" / "noto"
    erase(Concept("noto", anchor="fluent"), method=quickly("uce"), out=folder, n=0)
    item = demo[0].studio.library.of_folder(folder)
    refused(client, "tokens, the text encoder", "a cat " * 40, [item.id], api_name="/compare")
    client.predict(item.id, api_name="/delete")


def test_a_list_by_api(client, tmp_path):
    from gradio_client import handle_file

    file = tmp_path / "list.csv"
    file.write_text("target;kind\nnoto;style\n;style\nbomb;violence\n")
    checked = client.predict(handle_file(str(file)), pictures=0, api_name="/check_list")
    assert [e["target"] for e in checked["entries"]] == ["noto", "bomb"]
    assert [p["row"] for p in checked["problems"]] == [3]
    assert checked["plan"]["bytes"] > 0
    other = tmp_path / "list.zip"
    other.write_bytes(b"PK\x03\x04")
    refused(client, "is no list", handle_file(str(other)), api_name="/check_list")


def test_pictures_by_api_are_checked(client, tmp_path):
    from gradio_client import handle_file

    bad = tmp_path / "a.png"
    bad.write_bytes(b"\x80\x02cos\nsystem")
    refused(client, "not a picture", [handle_file(str(bad))], api_name="/recognise")


# -- pieces --------------------------------------------------------------------------------------------------------


def test_forms_come_from_the_methods_fields():
    for name in available():
        made = forms.fields(name)
        assert [f.name for f in made] == [setting for setting, *_ in describe(name).settings]
        assert all(f.meaning for f in made)
        values = {f.name: f.default for f in made}
        assert forms.changed(name, values) == {}, "defaults change nothing"
    tokens = next(f for f in forms.fields("uce") if f.name == "tokens")
    assert (tokens.form, tokens.default) == ("choice", "all")
    assert "subject" in tokens.choices
    assert forms.changed("uce", {"rank": "", "ridge": 2.5, "bare": True}) == {"rank": None, "ridge": 2.5, "bare": True}


def test_text_from_outside_is_inert():
    text = """<img src=x onerror=alert(1)> "a" 'b' {{c}} ${d} `e` &"""
    made = esc(text)
    assert not set(made) & set("<>\"'{}$`")
    import html

    assert html.unescape(made) == text


def test_folders_are_named_only_from_this_computer(base_folder, monkeypatch):
    assert check_source(str(base_folder), local=True) == str(base_folder)
    with pytest.raises(InputError, match="only when the demo runs on"):
        check_source(str(base_folder), local=False)
    monkeypatch.chdir(base_folder.parent.parent)
    relative = str(base_folder.relative_to(base_folder.parent.parent))
    assert relative.count("/") == 1, "it looks like a hub name, yet it is a folder"
    with pytest.raises(InputError, match="only when the demo runs on"):
        check_source(relative, local=False)
    assert check_source("name/model", local=False) == "name/model"
    assert check_source(" embedded ", local=False) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a bomb", True), ("Bomb!", True), ("a bombastic cat", False), ("a cat", False), ("skull art", True), ("", False)],
)
def test_sensitive_words(text, expected):
    assert is_sensitive(text) is expected


def test_texts_of_users_are_never_options(tmp_path):
    studio = Studio(tmp_path, defaults=Defaults(pictures=0))
    try:
        studio.queue.close()
        arguments = {
            "targets": ["--out=/tmp/x"], "kind": "style", "anchor": "--model", "preserve": ["--half"], "method": "uce",
            "settings": {"rank": None}, "pictures": 0, "steps": 5, "model": None, "scorer": None, "half": False,
        }  # fmt: skip
        from demos.jobs import Job

        line = studio.command(Job("0" * 16, "erase", arguments, "", "erasures/x"))
    finally:
        studio.queue._lock_file.release()
    assert line[line.index("--") + 1 :] == ['"--out=/tmp/x"']
    assert '--anchor="--model"' in line
    assert '--preserve="--half"' in line
    assert "--set=rank=none" in line


@pytest.fixture
def idle(tmp_path):
    """A studio whose queue takes jobs and works on none."""
    studio = Studio(tmp_path / "idle", defaults=Defaults(pictures=0))
    studio.queue.close()
    return studio


def test_a_name_that_holds_a_comma_is_asked_about_once(idle):
    for fields in ({"anchor": "dog, bird"}, {"preserve": ["dog, bird"]}):
        with pytest.raises(InputError, match="reads like 2 names"):
            idle.erase(["cat"], **fields)
    names = {"targets": ['"Doe, John"'], "preserve": ['"Roe, Jane"'], "anchor": '"plain, simple"'}
    job = idle.erase(**names)
    assert [job.arguments[name] for name in names] == [["Doe, John"], ["Roe, Jane"], "plain, simple"]
    again = idle.firmer(job.id, 60)
    assert again.arguments == {**job.arguments, "pictures": 60}
    assert {'--anchor="plain, simple"', '--preserve="Roe, Jane"', '"Doe, John"'} <= set(idle.command(again))


def test_it_stops_cleanly_and_goes_on(tmp_path):
    """Started as a command, stopped by Ctrl-C; its queue is free for the next one."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "demos/app.py", "--folder", str(tmp_path), "--port", str(app.free_port("127.0.0.1"))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert "http://127.0.0.1" in process.stdout.readline()
        import signal

        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
    studio = Studio(tmp_path)
    studio.close()
    assert json.loads(json.dumps([j.state for j in studio.queue.jobs()])) == []
