"""The service as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import searchkit
from searchkit.server.errors import handle
from searchkit.server.gate import Gate, Observer
from searchkit.server.mcp import http_routes, mcp_server
from searchkit.server.routes import documents, embeddings, health, page, rerank, search
from searchkit.server.service import Service
from searchkit.server.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """Open the indexes, load their models, and make the application that answers for them.

    `app.state.service` is the `Service`, which further routes work on.

    Raises:
        SearchkitError: An index cannot be opened or a model cannot be loaded.
    """
    service = Service(settings)
    mcp = mcp_server(list(service.indexes), run=service.read)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running(), mcp.session_manager.run():
            yield

    app = FastAPI(
        title="searchkit",
        version=searchkit.__version__,
        lifespan=lifespan,
        docs_url=None,  # they load scripts from other hosts
        redoc_url=None,
    )
    app.state.service = service
    for module in (health, page, search, documents, embeddings, rerank):
        app.include_router(module.router)
    app.router.routes.extend(http_routes(mcp, allowed_hosts=()))  # the gate checks the host
    for error in (HTTPException, RequestValidationError):  # others reach the gate
        app.add_exception_handler(error, handle)
    app.add_middleware(Gate, settings=settings)  # the last one added is the outermost
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After", "retry-after-ms"],
        )
    app.add_middleware(Observer, service=service)
    return app
