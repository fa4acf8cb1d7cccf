"""A model over the wire as a runtime: pieces of text in, the server's vectors out."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np

from searchkit.errors import RemoteError
from searchkit.models.conventions import Conventions, family_conventions
from searchkit.models.remote.address import RemoteModel
from searchkit.models.remote.client import EmbeddingsClient, Patience
from searchkit.models.remote.pieces import PieceTokenizer, query_ids, split_query, text_of

logger = logging.getLogger(__name__)

PROBES = (
    "river",
    "The telephone was patented in 1876 by Alexander Graham Bell.",
    "Pourquoi le ciel est-il bleu ? 天空为什么是蓝色的",
    "for (int i = 0; i < 10; i++) { total += price[i] * 1.19; }",
)
"""Texts whose vectors tell a model from another one; an index stores the vectors, so they must not change."""

_ALIKE = 0.995
"""Least cosine of a probe's vectors from one model: other hardware and 16 bits stay above it, other weights do not."""

_PROBED = 4
"""Texts from which on a request carries a probe too: a server may be restarted with another model at any time."""

_WORTHLESS = 8
"""A text longer than this times the model's length, in pieces, is cut before it is sent: no server reads so far."""


class RemoteRuntime:
    """Sends texts to an OpenAI-compatible server; see :class:`searchkit.models.runtime.Runtime`.

    A server of searchkit says by which conventions its model works, and puts query and instruction together itself as
    long as those apply, because it alone can count tokens. Others get every text complete.

    Args:
        model: Where the model is.
        workers: Requests at the same time; None for 4.
        patience: How long the server is waited for; None for the default, with the model's own timeout.

    Attributes:
        probes: (len(PROBES), hidden_size) float32, the server's vectors of :data:`PROBES`.
        instruction_shift: By what the server shifts queries, for instructions that it puts together with their query
            itself: a checksum, "unknown" where it does not tell one, None where it shifts none.
        truncated: Texts that the server, or the client at the server's wish, has truncated.

    Raises:
        RemoteError: The server cannot be reached, or gives no usable answer.
        InputError: The key cannot be used.
    """

    decoder = False
    bos_id: int | None = None
    eos_id: int | None = None
    dtype = "as served"
    token_budget = 8192

    def __init__(self, model: RemoteModel, workers: int | None = None, patience: Patience | None = None) -> None:
        self.model, self.workers = model, workers or 4
        patience = patience or (Patience(timeout=model.timeout) if model.timeout else Patience())
        self._client = EmbeddingsClient(model, patience)
        self.tokenizer = PieceTokenizer()
        known = self._client.models()
        served = next((each for each in known if each.get("id") == model.name), {})
        self._knows_raw = served.get("owned_by") == "searchkit"
        longest = served.get("max_model_len")
        self.longest = longest if type(longest) is int and longest >= 8 else None
        self._served = _conventions(served.get("conventions")) if self._knows_raw else None
        self.instruction_shift: str | None = None
        if self._served is not None and served.get("shifts_queries") is True:
            checksum = served.get("instruction_shift")
            self.instruction_shift = checksum if isinstance(checksum, str) and checksum else "unknown"
        self.truncated = 0
        self._lock = threading.Lock()
        try:
            self.probes = self._client.embed(PROBES, self._raw).rows
        except RemoteError as error:
            names = ", ".join(str(each.get("id")) for each in known[:20])
            if not known or served:
                raise
            raise RemoteError(f"{error}. The server has the models {names}") from None
        self.hidden_size = self.probes.shape[1]

    @property
    def most_texts(self) -> int:
        """Texts of one request; a probe goes with them."""
        return max(1, self._client.most_texts - 1)

    def conventions(self) -> Conventions:
        """How texts are sent: by the name's settings, then the server if it is searchkit's, then the family."""
        model = self.model
        conventions = family_conventions(model.family) if model.family else self._served
        if model.family and conventions is None:
            logger.warning("%s: no family is called %r; nothing is put before texts", model, model.family)
        conventions = conventions or family_conventions(model.name)
        if conventions is None:
            conventions = Conventions()
            if not (model.family or model.query is not None or model.document is not None or model.template):
                _warn_unknown(str(model))
        if model.query is not None:
            conventions = replace(conventions, query_prefix=model.query, default_instruction=None)
        if model.document is not None:
            conventions = replace(conventions, document_prefix=model.document)
        if model.template is not None:
            conventions = replace(conventions, instructed=model.template)
        length = model.length or min(conventions.max_length, self.longest or conventions.max_length)
        return replace(conventions, max_length=length)

    def composes(self, conventions: Conventions) -> bool:
        """Whether the server puts a query and its instruction together as these conventions do."""
        names = ("instructed", "query_prefix", "query_repeats")
        return self._served is not None and all(
            getattr(self._served, name) == getattr(conventions, name) for name in names
        )

    def query_ids(self, query: str, instruction: str) -> list[int]:
        """A query for a server that composes."""
        return query_ids(*(each.ids for each in self.tokenizer.encode_batch_fast([query, instruction])))

    def forward(self, batch: list[list[int]], conventions: Conventions) -> np.ndarray:
        """The server's vectors, (len(batch), hidden_size) float32, in general not normalised.

        Raises:
            RemoteError: There was no usable answer, or another model answers by now.
        """
        rows = np.empty((len(batch), self.hidden_size), np.float32)
        longest = _WORTHLESS * conventions.max_length
        queries = {n: split for n, ids in enumerate(batch) if (split := split_query(ids)) is not None}
        raw = [n for n in range(len(batch)) if n not in queries]
        if raw:
            rows[raw] = self._embed_raw([text_of(batch[n][:longest]) for n in raw])
        if queries:
            texts = [text_of(query[:longest]) for query, _ in queries.values()]
            instructions = [text_of(instruction) for _, instruction in queries.values()]
            rows[list(queries)] = self._embed(texts, {"input_type": "query", "instruction": instructions})
        return rows

    @property
    def _raw(self) -> dict[str, Any]:
        return {"input_type": "raw"} if self._knows_raw else {}

    def _embed(self, texts: Sequence[str], fields: dict[str, Any]) -> np.ndarray:
        found = self._client.embed(texts, fields, self.hidden_size)
        with self._lock:
            self.truncated += found.truncated
        return found.rows

    def _embed_raw(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts as they are, and make sure with every batch that it is still the same model."""
        if len(texts) < _PROBED:
            return self._embed(texts, self._raw)
        rows = self._embed([*texts, PROBES[0]], self._raw)
        check_probes(self.probes[:1], rows[-1:], str(self.model))
        return rows[:-1]


@cache  # one warning per model
def _warn_unknown(name: str) -> None:
    logger.warning(
        "%s: no known family of models has this name, so nothing is put before texts, and instructions are sent in the "
        "template of E5. If it wants prefixes or another template, name its family or them: #family=NAME, or "
        "#query=PREFIX,document=PREFIX",
        name,
    )


def _conventions(values: object) -> Conventions | None:
    """Conventions as a searchkit server reports them; None if they are not what this version knows."""
    if not isinstance(values, dict):
        return None
    default = Conventions()
    kinds = {field.name: type(getattr(default, field.name)) for field in fields(Conventions)}
    kinds |= {"default_instruction": str, "smallest_dim": int}  # None by default
    known = {name: value for name, value in values.items() if name in kinds}
    if any(type(value) is not kinds[name] and value is not None for name, value in known.items()):
        return None
    return Conventions(**{name: value for name, value in known.items() if value is not None})


def encode_probes(rows: np.ndarray) -> list[str]:
    """The vectors of the probes as an index stores them: half precision, base64."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return [base64.b64encode(row.astype("<f2").tobytes()).decode() for row in unit]


def decode_probes(texts: Sequence[str]) -> np.ndarray:
    """The inverse of `encode_probes`."""
    return np.stack([np.frombuffer(base64.b64decode(text), "<f2") for text in texts]).astype(np.float32)


def check_probes(before: np.ndarray, now: np.ndarray, name: str) -> None:
    """Raise RemoteError unless one model made both vectors of the probes.

    Args:
        before: (len(PROBES), width), of any length.
        now: Likewise.
        name: Of the model that made `now`.
    """
    if before.shape != now.shape:
        raise RemoteError(f"{name} is another model by now: its vectors are {now.shape[1]} wide, not {before.shape[1]}")
    cosines = (before * now).sum(1) / (np.linalg.norm(before, axis=1) * np.linalg.norm(now, axis=1))
    if not (cosines >= _ALIKE).all():
        raise RemoteError(
            f"{name} is another model by now: its vectors of the probe texts have a cosine of {cosines.min():.3f} to "
            "those of before. Serve the model that the index was built with, or build another index"
        )
