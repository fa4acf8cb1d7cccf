"""Indexes as tools of the Model Context Protocol: over stdio by `searchkit mcp`, over HTTP at /mcp of the service."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from itertools import islice
from typing import Annotated, Any, ParamSpec, Protocol, TypeVar

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import ToolAnnotations
from pydantic import BaseModel, BeforeValidator, Field
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

import searchkit
from searchkit.errors import InputError, SearchkitError
from searchkit.ranking import Mode
from searchkit.records import Document
from searchkit.server.mcp_answers import (
    AddAnswer,
    DocumentPart,
    IndexFacts,
    IndexList,
    SearchAnswer,
    cut,
    document_part,
    search_answer,
)
from searchkit.server.weak import RelatedLevels, weak_matches
from searchkit.writer import Writer

P = ParamSpec("P")
R = TypeVar("R")

ANSWER_TOKENS = 5000
"""An answer's budget; clients warn at 10,000 tokens or cut what is longer."""

MOST_HITS = 100
_KEYS_FROM = 10_000  # documents; reading the metadata of millions would delay the start
_LISTED_KEYS, _LISTED_TITLES, _TITLE = 12, 3, 80

INSTRUCTIONS = """\
Search finds passages by meaning and by words in the indexes of this server.
- Write `query` as you would put the question to a person.
- Write `instruction` when something special is wanted: one sentence that says which documents count as relevant. \
The same query under another instruction finds other documents.
- Passages are excerpts; `fetch` reads the document.
- A "weak match" is probably not relevant. When all are weak, the index most likely has no answer: say so."""


class ServedIndex(Protocol):
    """An index by name."""

    @property
    def name(self) -> str:
        """What clients call it."""

    def current(self) -> Writer:
        """The engine, once it has seen the last commit."""


class OpenIndex:
    """An index that this process holds open."""

    def __init__(self, name: str, engine: Writer) -> None:
        self.name, self._engine = name, engine

    def current(self) -> Writer:
        """The engine, once it has seen the last commit."""
        self._engine.reload()
        return self._engine


def _default(value: object) -> Callable[[object], object]:
    # Many clients send null for a parameter that they do not use.
    return lambda given: value if given is None else given


IndexName = Annotated[
    str,
    BeforeValidator(_default("")),
    Field(description="Name of an index, see list_indexes. Not needed where there is only one."),
]
Instruction = Annotated[
    str,
    BeforeValidator(_default("")),
    Field(description="One sentence: which documents are relevant to the query. Empty: those that answer it."),
]
Where = Annotated[
    dict[str, Any],
    BeforeValidator(lambda given: {} if given is None or given == "" else given),
    Field(
        description='Conditions on metadata, such as {"year": {"$gte": 2015}, "lang": {"$in": ["en", "de"]}}; '
        "also $gt $lt $lte $ne $nin $exists $contains $and $or $not. Empty: all documents."
    ),
]
K = Annotated[
    int, BeforeValidator(_default(10)), Field(ge=1, le=MOST_HITS, description="How many documents to return.")
]
ModeName = Annotated[
    Mode,
    BeforeValidator(_default("hybrid")),
    Field(description="hybrid: by meaning and by words. dense: meaning only. lexical: words only, for exact names."),
]
Start = Annotated[int, BeforeValidator(_default(0)), Field(ge=0, description="First character of the part to read.")]
Length = Annotated[int, BeforeValidator(_default(1_000_000)), Field(ge=1, description="Characters to read at most.")]


class NewDocument(BaseModel):
    """A document to add."""

    id: str
    text: str
    title: str = ""
    metadata: dict[str, Any] = {}


class Tools:
    """The tools of one server.

    Args:
        indexes: The indexes that they may use.
        answer_tokens: Budget of an answer.
    """

    def __init__(self, indexes: Sequence[ServedIndex], answer_tokens: int = ANSWER_TOKENS) -> None:
        if not indexes:
            raise InputError("no index came; name one or more index folders")
        self._indexes = {index.name: index for index in indexes}
        if len(self._indexes) < len(indexes):
            raise InputError("two indexes have the same name; rename one of the folders")
        self._tokens, self._levels = answer_tokens, RelatedLevels()

    def search(
        self,
        query: str,
        instruction: Instruction = "",
        k: K = 10,
        where: Where = {},  # noqa: B006  # read only; shown in the schema
        mode: ModeName = "hybrid",
        index: IndexName = "",
    ) -> SearchAnswer:
        """Find the documents that match a query best."""
        name, engine = self._engine(index)
        notes = [fault.message for fault in engine.filter_faults(where)] if where else []
        sentence = instruction or None
        hits = engine.search(query, instruction=sentence, k=k, where=where or None, mode=mode, explain=True)
        weak = weak_matches(query, hits, engine.settings["language"], lambda: self._levels.of(engine.embedder))
        if weak and all(weak):
            notes.append("All matches are weak: this index probably has no answer to the query.")
        if not hits:
            notes.append("Nothing matches" + (" within the filter." if where else "."))
        return search_answer(name, hits, weak, notes, self._tokens)

    def fetch(self, id: str, start: Start = 0, length: Length = 1_000_000, index: IndexName = "") -> DocumentPart:
        """Read a document by its id, a long one in parts."""
        name, engine = self._engine(index)
        document = engine.get(id)
        if document is None:
            raise ToolError(f"{name} holds no document {id!r}; use an id that search returned, as it is")
        return document_part(name, document, start, length, self._tokens)

    def list_indexes(self) -> IndexList:
        """Name the indexes, with what each holds and the metadata that `where` can use."""
        return IndexList(indexes=[facts(index) for index in self._indexes.values()])

    def add_documents(self, documents: list[NewDocument], update: bool = False, index: IndexName = "") -> AddAnswer:
        """Add documents; with `update`, replace those that have the same id."""
        name, engine = self._engine(index)
        refused: dict[str, str] = {}
        report = engine.add(
            [Document(new.id, new.text, new.title, new.metadata) for new in documents],
            update=update,
            on_refused=lambda document, reason: refused.update({document.id: reason}),
        )
        return AddAnswer(
            index=name, added=report.documents, updated=report.updated, unchanged=report.unchanged, refused=refused
        )

    def describe(self) -> str:
        """What there is to search, with an example, for the description of the search tool."""
        listed = [facts(index) for index in self._indexes.values()]
        parts = [_described(each) for each in listed]
        example = next((each for each in listed if each.titles), None)
        return "\n\n".join([*parts, _example(example)] if example else parts)

    def _engine(self, name: str) -> tuple[str, Writer]:
        if not name and len(self._indexes) == 1:
            (name,) = self._indexes
        if name not in self._indexes:
            came = f"no index is called {name!r}" if name else "index is missing"
            raise ToolError(f"{came}; give one of: {', '.join(self._indexes)}")
        return name, self._indexes[name].current()


def facts(index: ServedIndex) -> IndexFacts:
    """What an index holds; metadata as its first documents have them."""
    engine = index.current()
    keys = engine.metadata_keys(limit=_KEYS_FROM)
    first = islice(engine.documents(), _LISTED_TITLES)
    return IndexFacts(
        name=index.name,
        documents=len(engine),
        passages=engine.passages,
        language=str(engine.settings["language"]),
        metadata={
            name: f"{key.described}: {', '.join(key.examples)}" for name, key in islice(keys.items(), _LISTED_KEYS)
        },
        titles=[cut(" ".join((document.title or document.text).split()), _TITLE) for document in first],
    )


def _described(index: IndexFacts) -> str:
    lines = [f'Index "{index.name}": {index.documents:,} documents, such as']
    lines += [f"- {title}" for title in index.titles]
    if index.metadata:
        lines.append("Metadata for `where`:")
        lines += [f"- {name} ({described})" for name, described in index.metadata.items()]
    return "\n".join(lines)


def _example(index: IndexFacts) -> str:
    title = json.dumps(index.titles[0], ensure_ascii=False)
    return (
        f"Example: query {title} finds documents about the same matter. With instruction "
        '"Given a statement, retrieve documents that contradict it" the same query finds those that argue against it.'
    )


class Runner(Protocol):
    """Runs a tool's work off the event loop: the service counts it with its searches."""

    async def __call__(self, call: Callable[[], R]) -> R:
        """What the call returns."""


class _InThread:
    async def __call__(self, call: Callable[[], R]) -> R:
        return await anyio.to_thread.run_sync(call)


def _served(tool: Callable[P, R], run: Runner) -> Callable[P, Awaitable[R]]:
    """The tool, run by `run`, with errors of the library as messages that the model can act on."""

    @wraps(tool)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await run(partial(tool, *args, **kwargs))
        except (SearchkitError, HTTPException) as error:
            raise ToolError(str(error.detail if isinstance(error, HTTPException) else error)) from error

    return call


def mcp_server(
    indexes: Sequence[ServedIndex],
    *,
    writable: bool = False,
    answer_tokens: int = ANSWER_TOKENS,
    run: Runner | None = None,
) -> MCPServer[Any]:
    """A server with the tools `search`, `fetch` and `list_indexes`.

    Args:
        indexes: What it offers.
        writable: Offer `add_documents` too; the indexes are then open for writing.
        answer_tokens: Budget of an answer, in tokens of about four characters.
        run: Runs a tool's work; None for a thread.
    """
    run = run or _InThread()
    tools = Tools(indexes, answer_tokens)
    with _logging_untouched():
        server: MCPServer[Any] = MCPServer(
            "searchkit", version=searchkit.__version__, instructions=INSTRUCTIONS, log_level="WARNING"
        )
    read = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
    described = f"{Tools.search.__doc__}\n\n{tools.describe()}"
    server.add_tool(_served(tools.search, run), title="Search", description=described, annotations=read)
    server.add_tool(_served(tools.fetch, run), title="Read a document", annotations=read)
    server.add_tool(_served(tools.list_indexes, run), title="List indexes", annotations=read)
    if writable:
        write = ToolAnnotations(
            read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
        )
        server.add_tool(_served(tools.add_documents, run), title="Add documents", annotations=write)
    return server


@contextmanager
def _logging_untouched() -> Iterator[None]:
    """The SDK sets up the root logger; how a process logs is its own matter."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def http_routes(server: MCPServer[Any], *, allowed_hosts: Sequence[str] | None = None) -> list[BaseRoute]:
    """The route /mcp, for an application that runs `server.session_manager.run()` while it serves.

    Args:
        server: Made by `mcp_server`.
        allowed_hosts: Values of the Host header that may come, "name:*" for any port, as a guard against DNS
            rebinding; None for those of the loopback interface, and an empty sequence where the application checks it.
    """
    guard = None
    if allowed_hosts is not None:
        guard = TransportSecuritySettings(
            enable_dns_rebinding_protection=bool(allowed_hosts),
            allowed_hosts=list(allowed_hosts),
            allowed_origins=[f"{scheme}://{host}" for host in allowed_hosts for scheme in ("http", "https")],
        )
    # Without sessions: any worker can answer any request, and none is kept for a client that went away.
    return server.streamable_http_app(stateless_http=True, json_response=True, transport_security=guard).routes
