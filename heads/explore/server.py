"""The server of the page: on this machine, under an address that nobody can guess; no path of a request is a file."""

import json
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from featstore import FeatstoreError
from heads.errors import HeadsError, LabelsError
from heads.explore.documents import Documents
from heads.explore.pages import ASSETS, asset, index
from heads.explore.ratings import Ratings
from heads.explore.thumbnails import Thumbnails

LOOPBACK = ("127.0.0.1", "localhost")
MOST_DIGITS = 10
MOST_BODY = 10_000
"""Bytes of a rating that is sent."""
HEADERS = {
    # Scripts come from here alone. Styles may stand in the page: the library that draws puts some beside its charts.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def make_app(
    documents: Documents, thumbnails: Thumbnails, ratings: Ratings, *, token: str, hosts: tuple[str, ...] = LOOPBACK
) -> Starlette:
    """The application; everything is below /TOKEN/.

    Args:
        token: a word that the address has, so that no other page or program of this machine can ask; none if empty.
        hosts: names under which it may be asked, so that no other site can give its own name to this address.
    """
    study = documents.study

    def page(_: Request) -> Response:
        return Response(index("server"), media_type="text/html")

    def script_or_style(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ASSETS:
            raise HTTPException(404)
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response(asset(name), media_type=kind)

    def document(request: Request) -> Response:
        try:
            return _json(documents.get(request.path_params["name"]))
        except KeyError as error:
            raise HTTPException(404) from error

    def photo_of(request: Request) -> int:
        text = request.path_params["photo"]
        photo = int(text) if text.isascii() and text.isdigit() and len(text) < MOST_DIGITS else len(study)
        if photo >= len(study):
            raise HTTPException(404, f"there is no photo {text[:20]}: the last is {len(study) - 1}")
        return photo

    def about_photo(request: Request) -> Response:
        return _json(documents.photo(photo_of(request)))

    async def small(request: Request) -> Response:
        photo = photo_of(request)
        # A file of ten kilobytes is read in less time than a thread takes to begin.
        return _picture(thumbnails.kept(photo) or await run_in_threadpool(thumbnails.small, photo))

    def large(request: Request) -> Response:
        return _picture(thumbnails.large(photo_of(request)))

    def given(_: Request) -> Response:
        place = {study.path(i): i for i in range(len(study))}
        found = [
            {"photo": place[each.path], "rater": each.rater, "rating": each.rating}
            for each in ratings.read()
            if each.path in place
        ]
        return _json({"file": str(ratings.file), "ratings": found})

    async def rate(request: Request) -> Response:
        said = await _body(request)
        photo, rater, rating = said.get("photo"), said.get("rater"), said.get("rating")
        if isinstance(photo, bool) or not isinstance(photo, int) or not 0 <= photo < len(study):
            raise LabelsError(f"`photo` is a number from 0 to {len(study) - 1}; found {str(photo)[:40]}")
        path = study.path(photo)
        if rating is None:
            await run_in_threadpool(ratings.remove, path, str(rater))
        else:
            await run_in_threadpool(ratings.add, path, str(rater), rating)
        return JSONResponse({"kept": True})

    routes = [
        Route("/", page),
        Route("/page/{name}", script_or_style),
        Route("/data/ratings.json", given),
        Route("/data/{name}.json", document),
        Route("/data/photo/{photo}.json", about_photo),
        Route("/small/{photo}.jpg", small),
        Route("/large/{photo}.jpg", large),
        Route("/ratings", rate, methods=["POST"]),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)] if token else routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts]), Middleware(_Headers)],
        exception_handlers={HeadsError: _refuse, FeatstoreError: _refuse, HTTPException: _refuse},
    )


def serve(app: Starlette, where: socket.socket) -> None:
    """Answer requests until the process is interrupted."""
    config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", ws="none", server_header=False)
    uvicorn.Server(config).run(sockets=[where])


def listen(host: str, port: int) -> socket.socket:
    """A socket at which a server can listen; port 0 takes any that is free.

    Raises:
        HeadsError: the port is taken, or there is no such address on this machine.
    """
    try:
        ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise HeadsError(f"--host is an address as 127.0.0.1, or localhost; found {host!r}") from error
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named so that asyncio knows it for TCP, and does not hold back the second half of an answer.
    where = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    where.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        where.bind((host, port))
        where.listen(128)  # who asks from now on waits until the server is up
    except (OSError, OverflowError) as error:
        where.close()
        said = error.strerror if isinstance(error, OSError) else "a port is a number up to 65535"
        raise HeadsError(f"cannot listen at {host}:{port}: {said}; name another --port, or none") from error
    return where


def hosts_of(host: str) -> tuple[str, ...]:
    """The names under which a server that listens at `host` may be asked; any, if other machines can ask."""
    address = ip_address(host) if host != "localhost" else None
    if address is not None and not address.is_loopback:
        return ("*",)
    return (*LOOPBACK, "[" if ":" in host else host)  # Starlette takes what is before the first colon


def new_token() -> str:
    """A word for the address, of 128 random bits."""
    return secrets.token_urlsafe(16)


class _Headers:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        await self._app(scope, receive, add)


async def _body(request: Request) -> dict[str, Any]:
    """
    Raises:
        LabelsError: what was sent is no JSON object, or is far too large.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise LabelsError("a rating is sent as application/json")  # which a form of another page cannot
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MOST_BODY:
            raise LabelsError(f"a rating has at most {MOST_BODY} bytes")
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LabelsError("what was sent is not JSON") from error
    if not isinstance(said, dict):
        raise LabelsError("a rating is an object with `photo`, `rater` and `rating`")
    return said


def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, status_code=error.status_code)
    return JSONResponse({"error": str(error)}, status_code=422)


def _json(value: Any) -> Response:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Response(text.encode("utf-8", "replace"), media_type="application/json")


def _picture(data: bytes | None) -> Response:
    if data is None:
        return Response(status_code=204)  # which a page shows as a grey field, and a console does not report
    return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})
