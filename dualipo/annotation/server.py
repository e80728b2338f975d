"""The page's server: one FastAPI application over one session, which nothing but the page is meant to talk to."""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from dualipo.annotation.guard import LOOPBACK, Guard
from dualipo.annotation.items import CHOICE_DIMENSIONS, KeptClip
from dualipo.annotation.ranges import Unsatisfiable, parse_range, pieces
from dualipo.annotation.session import LONGEST, Refused, Session, annotator_name
from dualipo.errors import UserError
from dualipo.media.playing import Playable, playable
from dualipo.media.store import locate, read_bytes

if TYPE_CHECKING:
    import uvicorn

HERE = Path(__file__).parent
MADE_ANEW = 64
"""Encoded clips held in memory."""


class _Unsaved(Exception):
    """An answer that the disk did not take."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    annotator: str = Field(max_length=200)
    item: str | None = Field(default=None, max_length=40)


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    annotator: str = Field(max_length=200)
    item: str = Field(max_length=40)
    verdicts: dict[str, str] = {}
    reasons: dict[str, str] = {}
    seconds: float = 0.0


def build_app(session: Session, token: str, host: str = "127.0.0.1", cookie: str = "dualipo-annotate") -> Guard:
    """The page, its items and its clips, for whoever bears `token`; `host` is what the server listens on."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    clips = _Clips(session)
    page = _page(session)

    @app.get("/", response_class=HTMLResponse)
    def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"cache-control": "no-store"})

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in ("page.css", "page.js"):
            return JSONResponse({"error": "no such file"}, 404)
        return FileResponse(HERE / name, headers={"cache-control": "no-cache"})

    @app.post("/api/item")
    def item(asked: _Asked) -> Response:
        return _answered(lambda: _with_clips(session.show(asked.annotator, asked.item), clips))

    @app.post("/api/answer")
    def answer(given: _Given) -> Response:
        def write() -> dict[str, Any]:
            try:
                session.answer(given.annotator, given.item, given.verdicts, given.reasons, given.seconds)
            except OSError as error:
                raise _Unsaved(f"Not saved: {error.strerror or error}. Make room, then try again.") from None
            return _with_clips(session.show(given.annotator), clips)

        return _answered(write)

    @app.post("/api/name")
    def name(asked: _Asked) -> Response:
        return _answered(lambda: {"name": annotator_name(asked.annotator)})

    @app.api_route("/clip/{md5}", methods=["GET", "HEAD"])
    def clip(md5: str, request: Request) -> Response:
        try:
            return clips.serve(md5, request.headers.get("range"), request.method == "HEAD")
        except UserError as error:
            return JSONResponse({"error": str(error)}, 410)

    return Guard(app, token, host, cookie)


def _answered(act: Callable[[], dict[str, Any]]) -> Response:
    """What `act` gives as JSON; what it refuses in words."""
    try:
        return JSONResponse(act(), headers={"cache-control": "no-store"})
    except Refused as refused:
        return JSONResponse({"error": str(refused)}, 409)
    except _Unsaved as error:
        return JSONResponse({"error": str(error)}, 507)


def _with_clips(shown: dict[str, Any], clips: _Clips) -> dict[str, Any]:
    item = shown["item"]
    if item:
        item["clips"] = [{"url": f"/clip/{md5}", "tiny": clips.tiny(md5)} for md5 in item["clips"]]
    return shown


class _Clips:
    """Clips of the session by md5, each checked to be what it was when the session was made."""

    def __init__(self, session: Session):
        self.folder = session.recorded.folder
        self.kept: dict[str, KeptClip] = {clip.md5: clip for clip in session.clips()}
        self.playable = lru_cache(maxsize=MADE_ANEW)(self._playable)

    def tiny(self, md5: str) -> bool:
        try:
            return self.playable(md5).tiny
        except UserError:
            return False  # the page learns of it when it asks for the clip

    def serve(self, md5: str, wanted: str | None, head: bool) -> Response:
        if md5 not in self.kept:
            return JSONResponse({"error": "no such clip"}, 404)
        shown = self.playable(md5)
        path, offset, size = self._place(md5)
        if shown.data is not None:
            size = len(shown.data)
        headers = {"accept-ranges": "bytes", "cache-control": "private, max-age=86400, immutable"}
        try:
            part = parse_range(wanted, size)
        except Unsatisfiable:
            return Response(status_code=416, headers={**headers, "content-range": f"bytes */{size}"})
        start, end = part or (0, size)
        headers["content-length"] = str(end - start)
        if part:
            headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
        status = 206 if part else 200
        if head:
            return Response(status_code=status, headers=headers, media_type=shown.media_type)
        if shown.data is not None:
            return Response(shown.data[start:end], status, headers, shown.media_type)
        return StreamingResponse(pieces(path, offset + start, offset + end), status, headers, shown.media_type)

    def _place(self, md5: str) -> tuple[Path, int, int]:
        place = self.kept[md5].place(self.folder)
        return locate(place.folder, place.file)

    def _playable(self, md5: str) -> Playable:
        place = self.kept[md5].place(self.folder)
        data = read_bytes(place.folder, place.file)
        if hashlib.md5(data).hexdigest() != md5:
            raise UserError(f"{place.folder / place.file}: not the clip that this session was made of; restore it")
        return playable(data, place.file)


def _page(session: Session) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    settings = session.settings
    kinds = {item.kind for item in session.items.values()}
    asked = {name for item in session.items.values() for name in session.recorded.dimensions(item)}
    topics = {name: settings.guideline.topics[name].model_dump() for name in CHOICE_DIMENSIONS if name in asked}
    return environment.get_template("page.html.j2").render(
        title=settings.title, guideline=settings.guideline, topics=topics, kinds=kinds, reasons=settings.reasons,
        longest=LONGEST,
    )  # fmt: skip


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any that is free. Raises UserError where it can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error.strerror or error})") from None
    return listening


def address(listening: socket.socket, host: str, token: str) -> str:
    """What a person on this machine opens."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{name}]" if ":" in name else name
    return f"http://{shown}:{listening.getsockname()[1]}/?token={token}"


def make_server(session: Session, listening: socket.socket, host: str, token: str) -> uvicorn.Server:
    """A uvicorn server, to be run with `run(sockets=[listening])`. It logs no requests: one of them holds the token."""
    import uvicorn

    # cookies know no ports: two sessions on one machine must not overwrite each other's.
    app = build_app(session, token, host, f"dualipo-annotate-{listening.getsockname()[1]}")
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, lifespan="off",
        timeout_graceful_shutdown=2, ws="none",
    )  # fmt: skip
    return uvicorn.Server(config)


def new_token() -> str:
    return secrets.token_urlsafe(32)


def is_local(host: str) -> bool:
    return host in LOOPBACK
