"""In front of the server: who may ask, what is never fetched, and what a page may load."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MOST_BODY = 2**20  # bytes of one call; files come by upload
MOST_UPLOAD = 2**30  # bytes of one upload of several files
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")

# Gradio compiles its templates in the page, hence eval; nothing at all may come from or go to another host.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_REFUSED = re.compile(r"/(file|proxy)=\s*[a-z][a-z0-9+.-]*:/|/(monitoring|runs)\b", re.IGNORECASE)
_ADDRESS = re.compile(r"\s*([a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """Wraps the server.

    Args:
        app: The server.
        hosts: Names it may be asked under; None for any. A page elsewhere can point its own name at this computer, and
            only the Host header tells.
        room: Whether more uploads may be taken.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        hosts: tuple[str, ...] | None,
        room: Callable[[], bool],
    ) -> None:
        self.app, self.hosts, self.room = app, hosts, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").casefold()
        if self.hosts is not None and _without_port(host) not in self.hosts:
            await _refuse(send, 421, "this server is not known under that name.")
        elif _REFUSED.search(scope["path"]):
            await _refuse(send, 403, "addresses are not fetched.")
        elif scope["type"] == "http" and scope["method"] == "POST":
            await self._post(scope, receive, send, headers)
        else:
            await self.app(scope, receive, _marked(send))

    async def _post(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]) -> None:
        """A call: of bearable size, and naming no address where a file is expected."""
        upload = scope["path"].endswith("/upload")
        most = MOST_UPLOAD if upload else MOST_BODY
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            await _refuse(send, 413, f"a call may have at most {most:,} bytes.")
            return
        if upload and not self.room():
            await _refuse(send, 507, "the upload folder is full; restart the demo, which empties it.")
        elif upload:
            await self.app(scope, _counted(receive, most), _marked(send))
        if upload:
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                await _refuse(send, 413, f"a call may have at most {most:,} bytes.")
                return
        if _names_address(body):
            await _refuse(send, 400, "a file is expected, not an address; addresses are not fetched.")
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, _marked(send))


def _without_port(host: str) -> str:
    return host.rpartition(":")[0] if re.search(r":\d+$", host) else host


def _names_address(body: bytes) -> bool:
    """Whether the JSON of a call holds a file whose path is an address."""
    try:
        waiting: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and _ADDRESS.match(path):
                return True
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False


def _counted(receive: Receive, most: int) -> Receive:
    """What is received, cut off when it is more than was announced may be."""
    seen = 0

    async def counting() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > most else message

    return counting


def _marked(send: Send) -> Send:
    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await send(message)

    return marked


async def _refuse(send: Send, status: int, why: str) -> None:
    body = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
