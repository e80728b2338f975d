"""An HTTP server of a test's own, and the kubeconfig that leads to it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Any
    """What the JSON says; None where there is none."""

    @property
    def token(self) -> str:
        """Whom the request is from."""
        return self.headers.get("Authorization", "").removeprefix("Bearer ")


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # who hung up wants no answer.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Cut(Exception):
    """Raised by a stream: the connection breaks there."""


Answer = dict | str | Iterator[bytes]
"""JSON, text, or a stream's chunks."""


@contextmanager
def serving(answer: Callable[[Request], tuple[int, Answer]]) -> Iterator[str]:
    """Whatever `answer` gives, status and content, behind a port of its own; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet an answer: two would wait for each other
        timeout = 60

        def reply(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            path, _, query = self.path.partition("?")
            status, content = answer(Request(self.command, path, query, self.headers, body))
            self.send_response(status)
            if isinstance(content, Iterator):
                self._stream(content)
                return
            text = isinstance(content, str)
            sent = content.encode() if text else json.dumps(content).encode()
            self.send_header("Content-Type", "text/plain" if text else "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)
            self.wfile.flush()

        def _stream(self, chunks: Iterator[bytes]) -> None:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            try:
                for chunk in chunks:
                    self._chunk(chunk)
                self._chunk(b"")
            except Cut:
                self.close_connection = True  # without the last chunk: a break, not an end

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        do_GET = do_POST = do_PATCH = do_DELETE = reply

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def kubeconfig(file: Path, url: str, token: str | None = None) -> Path:
    """Writes a kubeconfig whose one context, `here`, leads to `url`, with a bearer token."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": token} if token else {}}],
    }
    file.write_text(json.dumps(content))
    return file
