"""Routes that change an index; each answer names the commit that holds the change."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from searchkit.errors import InputError
from searchkit.ingest import AddReport
from searchkit.records import Document
from searchkit.server.errors import ServerError, json_response, not_found
from searchkit.server.indexes import ServedIndex
from searchkit.server.service import Current, Service
from searchkit.writer import Writer


async def require_write_key(request: Request, service: Current) -> None:
    """Raise ServerError unless the request came with a write key."""
    if request.scope.get("may_write"):
        return
    if not service.settings.keys.write:
        raise ServerError(403, "read_only", "this service was started without a write key, so it only reads")
    if "authorization" in request.headers:
        raise ServerError(403, "read_key", "this key may not write; writing needs a write key")
    message = "no key came; send a write key as Authorization: Bearer KEY"
    raise ServerError(401, "no_key", message, headers={"WWW-Authenticate": "Bearer"})


router = APIRouter(tags=["documents"], dependencies=[Depends(require_write_key)])

MOST_DOCUMENTS = 10_000


class DocumentBody(BaseModel):
    """A document without its id."""

    model_config = ConfigDict(extra="forbid")

    text: str = ""
    title: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)
    vector: list[float] | None = Field(
        default=None,
        description="Its vector, for an index whose vectors its users made; without one, it is found lexically.",
    )


class DocumentItem(DocumentBody):
    """A document."""

    id: str


class Documents(BaseModel):
    """Documents to add."""

    model_config = ConfigDict(extra="forbid")

    documents: list[DocumentItem]
    update: bool = Field(default=False, description="Replace documents of the same id; otherwise they are refused.")


class Selection(BaseModel):
    """Documents to delete."""

    model_config = ConfigDict(extra="forbid")

    ids: list[str] = Field(default_factory=list)
    where: dict[str, Any] | None = None


@router.post("/indexes/{name}/documents")
async def add_documents(name: str, body: Documents, service: Current) -> Response:
    """Add documents. One that cannot be added is refused with a reason, and the others are added."""
    if not 1 <= len(body.documents) <= MOST_DOCUMENTS:
        raise InputError(f"{len(body.documents)} documents came; expected 1 to {MOST_DOCUMENTS}")
    documents = [Document(each.id, each.text, each.title, each.metadata, vector=each.vector) for each in body.documents]
    return json_response(await _added(service, service.indexes[name], documents, update=body.update))


@router.put("/indexes/{name}/documents/{id:path}")
async def put_document(name: str, id: str, body: DocumentBody, service: Current) -> Response:
    """Add a document, or replace the one of that id."""
    document = Document(id, body.text, body.title, body.metadata, vector=body.vector)
    return json_response(await _added(service, service.indexes[name], [document], update=True))


@router.delete("/indexes/{name}/documents/{id:path}")
async def delete_document(name: str, id: str, service: Current) -> Response:
    """Delete a document."""
    index = service.indexes[name]
    commit, (deleted, _) = await service.write(lambda: index.write(lambda writer: writer.delete([id])))
    if not deleted:
        raise not_found("document_not_found", "the index holds no document of that id; ids are compared exactly")
    return json_response({"index": name, "commit": commit, "deleted": deleted})


@router.post("/indexes/{name}/delete")
async def delete_documents(name: str, body: Selection, service: Current) -> Response:
    """Delete documents by their ids, by a filter, or both."""
    index = service.indexes[name]
    if not body.ids and body.where is None:
        raise InputError("neither ids nor where came; say which documents to delete")

    def change(writer: Writer) -> tuple[int, list[str]]:
        return writer.delete(body.ids, where=body.where)

    commit, (deleted, unknown) = await service.write(lambda: index.write(change))
    return json_response({"index": name, "commit": commit, "deleted": deleted, "unknown": unknown})


async def _added(service: Service, index: ServedIndex, documents: list[Document], *, update: bool) -> dict[str, Any]:
    refused: list[dict[str, str]] = []

    def change(writer: Writer) -> AddReport:
        return writer.add(
            documents,
            vectors=None if writer.has_model else [document.vector for document in documents],
            update=update,
            on_refused=lambda document, why: refused.append({"id": document.id, "message": why}),
        )

    commit, report = await service.write(lambda: index.write(change))
    if len(refused) == len(documents):
        raise ServerError(400, "documents_refused", refused[0]["message"])
    return {
        "index": index.name,
        "commit": commit,
        "added": report.documents - report.unchanged - report.updated,
        "updated": report.updated,
        "unchanged": report.unchanged,
        "refused": refused,
    }
