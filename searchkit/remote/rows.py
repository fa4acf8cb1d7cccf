"""What a collection holds: one row a passage, with all that is known of its document."""

from __future__ import annotations

import json
import re
from base64 import b32encode
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any

import numpy as np

from searchkit.errors import InputError
from searchkit.indexer.analysis import Analyzer
from searchkit.indexer.documents import NewDocument, StoredPassage
from searchkit.records import Document, join_title
from searchkit.remote.client import library
from searchkit.remote.facts import facts_of

LONGEST = 65_535
"""Bytes of a string that Milvus keeps."""
MOST_FACTS = 4096
"""Elements of an array that Milvus keeps."""

_PLAIN = re.compile(r"[a-z0-9]+")
SHOWN = ["row", "doc", "id", "title", "text", "start", "stop", "metadata"]
WHOLE = [*SHOWN, "before", "after", "has_vector"]


def make_schema(width: int) -> Any:
    """The schema of a collection.

    The primary key is the passage's row in the index folder, so that writing a row twice changes nothing. `before` and
    `after` are the white space around a passage that belongs to none, so that the document's text can be put together.
    `words` are the terms of title and passage as the index's language has them, and BM25 is over those: the server
    ranks by the terms of a folder.
    """
    pymilvus = library()
    kinds = pymilvus.DataType
    schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", kinds.INT64, is_primary=True)
    for name in ("doc", "part", "start", "stop"):
        schema.add_field(name, kinds.INT64)
    for name in ("id", "title", "text", "before", "after", "checksum"):
        schema.add_field(name, kinds.VARCHAR, max_length=LONGEST)
    schema.add_field("metadata", kinds.JSON)
    schema.add_field("has_vector", kinds.BOOL)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=width)
    # The standard tokenizer leaves letters and digits together, which is all that there is.
    analyzer = {"tokenizer": "standard"}
    schema.add_field(
        "words", kinds.VARCHAR, max_length=LONGEST, enable_analyzer=True, enable_match=True, analyzer_params=analyzer
    )
    schema.add_field("bm25", kinds.SPARSE_FLOAT_VECTOR)
    schema.add_field("facts", kinds.ARRAY, element_type=kinds.VARCHAR, max_capacity=MOST_FACTS, max_length=64)
    schema.add_field("ranges", kinds.JSON)
    schema.add_function(
        pymilvus.Function(
            name="words_bm25",
            function_type=pymilvus.FunctionType.BM25,
            input_field_names=["words"],
            output_field_names=["bm25"],
        )
    )
    return schema


def rows_of(
    document: NewDocument, doc: int, first: int, vectors: np.ndarray, analyzer: Analyzer
) -> list[dict[str, Any]]:
    """The rows of a document.

    Args:
        document: As an index folder stores it.
        doc: Its position.
        first: The row of its first passage.
        vectors: Those of its passages, (n, width) float32; none where it has none.
        analyzer: Of the index's language.

    Raises:
        InputError: Milvus cannot keep it.
    """
    metadata = json.loads(document.metadata)
    facts = facts_of(document.id, document.title, metadata)
    if len(facts.words) > MOST_FACTS:
        raise _too_large(document, f"the keys and values of its metadata are {len(facts.words)} facts", MOST_FACTS)
    for name, value in (("metadata", document.metadata), ("metadata", json.dumps(facts.ranges))):
        if (size := len(value.encode())) > LONGEST:
            raise _too_large(document, f"its {name} take {size} bytes", LONGEST)
    rows = []
    end = 0
    for part, (start, stop) in enumerate(document.spans):
        text = document.text[start:stop]
        row = {
            "row": first + part,
            "doc": doc,
            "part": part,
            "start": start,
            "stop": stop,
            "id": document.id,
            "title": document.title,
            "text": text,
            "before": document.text[end:start],
            "after": document.text[stop:] if part == len(document.spans) - 1 else "",
            "checksum": document.checksum,
            "metadata": metadata,
            "has_vector": document.has_vectors,
            "vector": vectors[part] if document.has_vectors else np.zeros(vectors.shape[1], np.float32),
            "words": " ".join(words_of(join_title(document.title, text), analyzer)),
            "facts": facts.words,
            "ranges": facts.ranges,
        }
        for name in ("id", "title", "text", "before", "after", "words"):
            if (size := len(row[name].encode())) > LONGEST:
                raise _too_large(document, f"its {name} takes {size} bytes", LONGEST)
        end = max(end, stop)
        rows.append(row)
    return rows


def _too_large(document: NewDocument, what: str, most: int) -> InputError:
    return InputError(
        f"document {document.id!r}: {what}, and Milvus keeps {most:,}; shorten it, or index with passages "
        "(--chunk-tokens) where the text is too long"
    )


def words_of(passage: str, analyzer: Analyzer) -> list[str]:
    """The terms of a passage as they are stored: in letters and digits of ASCII, which no tokenizer takes apart."""
    return [*map(_spelt, analyzer.analyze(passage))]


def words_of_query(query: str, analyzer: Analyzer) -> list[str]:
    """The terms that a query looks for, likewise."""
    return [*map(_spelt, analyzer.analyze_query(query))]


def _spelt(term: str) -> str:
    if _PLAIN.fullmatch(term):
        return term
    return "0" + b32encode(blake2b(term.encode(), digest_size=10).digest()).decode().lower()


def passage_of(row: dict[str, Any]) -> StoredPassage:
    """A passage from its row."""
    return StoredPassage(
        row["row"], row["doc"], row["id"], row["title"], row["text"], row["start"], row["stop"], row["metadata"]
    )


def documents_of(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, Document, bool, list[int]]]:
    """(position, document, whether it has vectors, its rows) from all rows of some documents, in order."""
    for doc, group in groupby(rows, key=lambda row: int(row["doc"])):
        parts = list(group)
        document = Document(parts[0]["id"], _text_of(parts), parts[0]["title"], parts[0]["metadata"])
        yield doc, document, bool(parts[0]["has_vector"]), [int(row["row"]) for row in parts]


def _text_of(parts: Sequence[dict[str, Any]]) -> str:
    text = ""
    for row in parts:
        text += row["before"] + row["text"][max(0, len(text) - row["start"]) :]
    return text + str(parts[-1]["after"])
