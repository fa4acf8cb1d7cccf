"""The search page at `/`: the files of `static/`, served as they are, under a policy that lets nothing else in."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Response

from searchkit.server.errors import not_found

router = APIRouter(include_in_schema=False)

_TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _files() -> dict[str, bytes]:
    folder = files("searchkit.server") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} if folder.is_dir() else {}


_FILES = _files()  # a few; a request names one of these and never a path


@router.get("/")
async def index() -> Response:
    """The page."""
    return await static("index.html")


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """A script or a style of the page."""
    if name not in _FILES:
        raise not_found("not_found", "this installation has no such file")
    return Response(_FILES[name], 200, _HEADERS, _TYPES.get(name.rpartition(".")[2], "application/octet-stream"))
