"""What the demo's server refuses, whatever a page or a program sends it."""

import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from . import hostile
from .demo import APP, Demo, environment

SECRET = "a secret outside"


def ask(demo: Demo, path: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body, whatever they are; the path goes out exactly as given."""
    connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=30)
    try:
        connection.request("GET" if data is None else "POST", path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def upload(demo: Demo, name: str, content: bytes) -> tuple[int, bytes]:
    """Send a file as the page does."""
    head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + content + b"\r\n--edge--\r\n"
    return ask(demo, "/gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=edge"})


@pytest.fixture
def secret(demo):
    """A file beside the demo's folder."""
    path = demo.folder.parent / "secret.txt"
    path.write_text(SECRET)
    return path


@pytest.mark.parametrize("route", ["/gradio_api/file=", "/file=", "/gradio_api/file/", "/file/"])
@pytest.mark.parametrize(
    "form", ["{absolute}", "../{name}", "..%2f{name}", "%2e%2e/{name}", "folder/../{name}", "{twice}"]
)
def test_nothing_outside_is_served(demo, secret, route, form):
    path = form.format(absolute=secret, name=secret.name, twice=quote(quote(str(secret), safe=""), safe=""))
    status, body = ask(demo, route + path)
    assert status in {400, 403, 404, 405, 307}, body[:200]
    assert SECRET.encode() not in body


@pytest.mark.parametrize("path", ["/etc/passwd", str(APP), str(APP.parents[1] / "pyproject.toml")])
def test_no_file_of_the_machine_is_served(demo, path):
    status, body = ask(demo, f"/gradio_api/file={path}")
    assert status in {403, 404}
    assert b"root:" not in body
    assert b"import" not in body


def test_proxy_route_fetches_nothing(demo):
    for target in ("http://example.com/", "https://huggingface.co/", demo.trap.url):
        status, _ = ask(demo, f"/gradio_api/proxy={target}")
        assert status in {400, 403, 404, 405}


def call(demo: Demo, name: str, values: list) -> str:
    """The events that a call of the API ends with, as text."""
    body = json.dumps({"data": values}).encode()
    status, answer = ask(demo, f"/gradio_api/call/{name}", body, **{"Content-Type": "application/json"})
    if status != 200:
        return answer.decode()
    event = json.loads(answer)["event_id"]
    return ask(demo, f"/gradio_api/call/{name}/{event}")[1].decode()


@pytest.mark.parametrize("name", ["recognise", "check_list"])
@pytest.mark.parametrize("what", ["file", "relative", "address", "own address", "plain text"])
def test_api_takes_no_path_and_no_address_for_a_file(demo, secret, name, what):
    path = {
        "file": str(secret), "relative": f"../{secret.name}", "address": "http://example.com/list.csv",
        "own address": f"{demo.trap.url}/list.csv", "plain text": str(secret),
    }[what]  # fmt: skip
    file: object = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "list.csv"}
    if "address" in what:
        file |= {"url": path}
    if what == "plain text":
        file = path
    events = call(demo, name, {"recognise": [[file], "", ""], "check_list": [file, "uce", {}, -1, -1, ""]}[name])
    assert "event: complete" not in events
    assert "event: error" in events or "not fetched" in events
    assert SECRET not in events


def test_no_other_call_takes_a_file(demo):
    """A call that is new belongs into the test above."""
    status, body = ask(demo, "/gradio_api/info")
    assert status == 200
    taking = {
        (endpoint, parameter["parameter_name"])
        for endpoint, description in json.loads(body)["named_endpoints"].items()
        for parameter in description["parameters"]
        if "dict(" in parameter["python_type"]["type"] or parameter["component"] in {"Image", "File", "Gallery"}
    }
    settings = {(endpoint, name) for endpoint, name in taking if name == "settings"}  # plain values
    assert taking - settings == {("/recognise", "pictures"), ("/check_list", "file")}


def test_api_takes_what_was_uploaded(demo):
    """The test above would pass on calls that take nothing at all."""
    _, body = upload(demo, "list.csv", b"target\ncat\n")
    file = {"path": json.loads(body)[0], "meta": {"_type": "gradio.FileData"}}
    events = call(demo, "check_list", [file, "uce", {}, -1, -1, ""])
    assert "event: complete" in events
    assert '"cat"' in events


@pytest.mark.parametrize(
    "name", ["../../escaped.csv", "/tmp/escaped.csv", "..\\\\escaped.csv", "a\x00b.csv", "x" * 400 + ".csv"]
)
def test_uploaded_names_stay_inside(demo, name):
    before = set(demo.folder.parent.glob("*escaped*"))
    status, body = upload(demo, name, b"target\ncat\n")
    if status == 200:
        (path,) = json.loads(body)
        assert ".." not in Path(path).parts
        kept = demo.folder / Path(path).relative_to("/studio")  # the demo's name for its folder
        assert kept.resolve().is_relative_to(demo.folder / "uploads")
        assert kept.is_file()
    assert status < 500
    outside = set(demo.folder.parent.glob("*escaped*")) - before
    assert not outside


def test_only_this_machine_can_connect(demo):
    # 127.0.0.2 is this machine too, but not the address that we bind to.
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", demo.port), timeout=5)


def test_foreign_host_name_is_refused(demo):
    assert ask(demo, "/", Host="evil.example")[0] in {400, 403, 421}
    assert ask(demo, "/gradio_api/info", Host="evil.example")[0] in {400, 403, 421}
    assert ask(demo, "/", Host=f"localhost:{demo.port}")[0] == 200


def test_foreign_pages_may_not_read(demo):
    connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=30)
    connection.request("GET", "/gradio_api/info", headers={"Origin": "http://evil.example"})
    answer = connection.getresponse()
    answer.read()
    assert answer.headers.get("Access-Control-Allow-Origin") in {None, "null"} or answer.status in {400, 403}
    connection.close()


# -- how it may be started -----------------------------------------------------------------------------------------


def start(trap, folder, *options: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(APP), "--folder", str(folder), *options], env=environment(trap) | variables,
        capture_output=True, text=True, timeout=60, check=False, cwd=folder.parent,
    )  # fmt: skip


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_machines_need_a_password(trap, tmp_path, host):
    done = start(trap, tmp_path / "folder", "--host", host)
    assert done.returncode == 2
    assert "--auth" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("auth", ["nameonly", ":", "name:", ":word"])
def test_half_a_password_is_refused(trap, tmp_path, auth):
    done = start(trap, tmp_path / "folder", "--host", "0.0.0.0", "--auth", auth)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_variables_of_gradio_open_nothing(own_demo, secret, monkeypatch):
    for name, value in {
        "GRADIO_SHARE": "True", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_ALLOWED_PATHS": "/",
        "GRADIO_ANALYTICS_ENABLED": "True",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    own_demo.start()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", own_demo.port), timeout=5)
    assert ask(own_demo, f"/gradio_api/file={secret}")[0] in {403, 404}


def test_demo_asks_for_the_password(own_demo, open_page):
    own_demo.options += ("--auth", "artist:a-long-password")
    own_demo.start()
    for path in ("/gradio_api/info", "/config", "/gradio_api/file=/etc/passwd"):
        assert ask(own_demo, path)[0] in {401, 403}
    page = open_page(own_demo.url)
    for password in ("wrong", "a-long-password"):
        page.get_by_label("username").fill("artist")
        page.get_by_label("password").fill(password)
        page.get_by_role("button", name="Login").click()
        if password == "wrong":
            page.get_by_text("Incorrect Credentials").wait_for()
    page.get_by_role("tab", name="Erase").wait_for()
    open_page.excuse("401", "400")


# -- uploads -------------------------------------------------------------------------------------------------------


def test_pickles_are_never_opened(demo, tmp_path):
    canary = tmp_path / "ran"
    upload(demo, "adapter.pt", hostile.pickled(canary))
    upload(demo, "adapter.safetensors", hostile.pickled(canary))
    assert not canary.exists()


def test_huge_uploads_are_refused_before_they_are_sent(demo):
    connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=30)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(2**30 + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
