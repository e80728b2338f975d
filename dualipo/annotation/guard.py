"""Who may talk to the page's server: bearers of the token, by a name that is the server's own, from the page itself."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 64 * 1024
"""Of a request's body."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Wraps an ASGI application; refuses before it sees anything.

    - `Host` must be the server's own name, else a page elsewhere could reach it by a name that it controls (DNS
      rebinding). An address in numbers is nobody's name: any is taken where the server listens on all interfaces.
    - The token stands in `/?token=` once and then in a cookie; both are compared in constant time.
    - What changes something must bear this server's `Origin` and be JSON, which no other site's page can send.
    """

    def __init__(self, app: App, token: str, host: str, cookie: str):
        self.app, self.cookie, self.host = app, cookie, host.lower()
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        query = parse_qs(scope["query_string"].decode("latin-1"))
        given = query.get("token", [""])[0] if scope["path"] == "/" else ""
        fresh = self._bears(given)
        if refusal := self._refusal(scope["method"], headers, fresh or self._bears(self._in_cookie(headers))):
            await _refuse(send, *refusal)
            return

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = {**HEADERS}
                if fresh:
                    added["set-cookie"] = f"{self.cookie}={given}; Path=/; HttpOnly; SameSite=Strict"
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in added.items())]
            await send(message)

        await self.app(scope, receive, sending)

    def _refusal(self, method: str, headers: dict[str, str], bears: bool) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._own(host):
            return 421, "This server does not go by that name."
        if not bears:
            return 403, "Open the address that `dualipo annotate` printed: it holds the token."
        if method in ("GET", "HEAD"):
            return None
        if headers.get("origin", "").partition("://")[2].lower() != host.lower():
            return 403, "Refused: not sent by this server's own page."
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return 415, "Only JSON is taken."
        length = headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return 413, f"Say how long the request is; at most {MOST_BYTES} bytes are taken."
        return None

    def _own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in LOOPBACK or name == self.host:
            return True
        return self.host in ("0.0.0.0", "::") and _is_address(name)

    def _bears(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)

    def _in_cookie(self, headers: dict[str, str]) -> str:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(send: Send, status: int, words: str) -> None:
    plain = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", **HEADERS}
    headers = [(key.encode(), value.encode()) for key, value in plain.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{words}\n".encode()})
