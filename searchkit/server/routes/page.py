"""The search page at `/`: the files of `static/`, served as they are, under a policy that lets nothing else in."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from searchkit.server.errors import not_found

router = APIRouter(include_in_schema=False)

_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    # With Trusted Types that nobody can make, a script that would set text as markup fails instead.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # ask each time whether it is still the same: a script fits its own version only
}


class _File(NamedTuple):
    content: bytes
    type: str
    etag: str


def _files() -> dict[str, _File]:
    folder = files("searchkit.server") / "static"
    found = {}
    for file in folder.iterdir():
        content = file.read_bytes()
        found[file.name] = _File(content, _TYPES[file.name.rpartition(".")[2]], f'"{sha256(content).hexdigest()[:32]}"')
    return found


_FILES = _files()  # a few; a request names one of these and never a path


@router.get("/")
async def index(request: Request) -> Response:
    """The page."""
    return await static("index.html", request)


@router.get("/static/{name}")
async def static(name: str, request: Request) -> Response:
    """A script or a style of the page."""
    if name not in _FILES:
        raise not_found("not_found", "the page has no such file")
    file = _FILES[name]
    headers = {**_HEADERS, "ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(None, 304, headers)
    return Response(file.content, 200, headers, file.type)
