"""The places of this computer, which nobody outside needs to know: kept out of texts, and renamed on the wire."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

ALIAS = "/studio"  # what the demo's folder is called outside
_ABSOLUTE = re.compile(r"(?<![\w:/\\.])(?:/(?P<top>[^\s/\"'`<>|:;,()]+)/|[A-Za-z]:[\\/])[^\s\"'`<>|;,()]*")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@cache
def _known() -> tuple[str, ...]:
    """Folders of this computer, the deepest first; they may hold spaces."""
    places = {Path.home(), Path.cwd(), Path(__file__).resolve().parent.parent, Path(tempfile.gettempdir())}
    places |= {Path(sys.prefix), Path(sys.base_prefix)}
    found = {str(p) for place in places for p in (place, place.resolve()) if len(p.parts) > 1}
    return tuple(sorted(found, key=len, reverse=True))


def unplaced(text: str) -> str:
    """A text in which every absolute path of this computer has become its last part: "/home/ann/x.csv" is "x.csv".

    What only looks like one ("AC/DC", "/imagine a cat", an address) stays: the first folder has to be there.
    """
    for place in _known():
        if place in text:
            known = re.escape(place)
            text = re.sub(rf"(?<=([\"'`])){known}(?:[/\\][^\"'`\n]*)?(?=\1)", lambda found: _end(found[0]), text)
            text = re.sub(rf"{known}(?:[/\\][^\s\"'`,;)]*|(?![\w-]))", lambda found: _end(found[0]), text)
    return _ABSOLUTE.sub(_last, text)


def _last(found: re.Match[str]) -> str:
    whole, top = found[0], found["top"]
    if top is not None and not _is_folder("/" + top):
        return whole
    return _end(whole)


def _end(path: str) -> str:
    """The last part of a path, with the punctuation that follows it in a sentence."""
    rest = path.rstrip("/\\.:")
    return re.split(r"[/\\]", rest)[-1] + path[len(rest) :].lstrip("/\\")


@cache
def _is_folder(path: str) -> bool:
    return Path(path).is_dir()


def without_places(value: Any) -> Any:
    """Plain values with `unplaced` texts; the files that are handed out keep the name that the server knows them by."""
    if isinstance(value, str):
        return unplaced(value)
    if isinstance(value, dict):
        if (value.get("meta") or {}) == {"_type": "gradio.FileData"}:
            return value
        return {key: without_places(inner) for key, inner in value.items()}
    return [without_places(inner) for inner in value] if isinstance(value, list | tuple) else value


class Renamed:
    """Wraps the server: outside, the demo's folder is called `ALIAS`, in every answer and in every call.

    The server names files by their whole path, in pages, events and addresses, and wants them back in the same way.

    Args:
        app: The server.
        root: The demo's folder.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], root: Path) -> None:
        self.app, self.root = app, root
        forms = dict.fromkeys((str(root), json.dumps(str(root))[1:-1], quote(str(root)), quote(str(root), safe="")))
        self._outward = [(form.encode(), ALIAS.encode()) for form in forms]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        upload = scope["path"].endswith("/upload")
        inward = dict(scope)
        inward["path"] = scope["path"].replace(f"={ALIAS}/", f"={self.root}/", 1)
        if isinstance(raw := scope.get("raw_path"), bytes):
            inward["raw_path"] = raw.replace(f"={ALIAS}/".encode(), f"={quote(str(self.root))}/".encode(), 1)
        await self.app(inward, receive if upload else self._received(receive), self._sent(send))

    def _received(self, receive: Receive) -> Receive:
        """Calls name files by the alias."""
        inside = json.dumps(str(self.root))[1:-1].encode()

        async def renamed() -> Message:
            message = await receive()
            if message.get("body"):
                message = {**message, "body": message["body"].replace(f'"{ALIAS}/'.encode(), b'"' + inside + b"/")}
            return message

        return renamed

    def _sent(self, send: Send) -> Send:
        """Answers in text have the alias instead of the folder; pictures and archives go out as they are."""
        plain = False

        async def renamed(message: Message) -> None:
            nonlocal plain
            if message["type"] == "http.response.start":
                headers = [(key.lower(), value) for key, value in message.get("headers", ())]
                kind = dict(headers).get(b"content-type", b"")
                handed_out = any(key == b"content-disposition" for key, _ in headers)
                plain = kind.startswith((b"text/html", b"application/json", b"text/event-stream")) and not handed_out
                if plain:  # the length changes
                    headers = [(key, value) for key, value in headers if key != b"content-length"]
                message = {**message, "headers": [(key, self._renamed(value)) for key, value in headers]}
            elif plain and message.get("body"):
                message = {**message, "body": self._renamed(message["body"])}
            await send(message)

        return renamed

    def _renamed(self, body: bytes) -> bytes:
        for form, alias in self._outward:
            body = body.replace(form, alias)
        return body
