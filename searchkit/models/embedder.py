"""Texts to unit-length float32 rows."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.errors import InputError
from searchkit.models.batches import Batches
from searchkit.models.conventions import Conventions
from searchkit.models.loading import load_model, settings_of
from searchkit.models.onnx_runtime import OnnxRuntime
from searchkit.models.remote.address import RemoteModel
from searchkit.models.remote.runtime import RemoteRuntime
from searchkit.models.shifted_queries import ShiftedQueries
from searchkit.models.vocabulary import UNREADABLE, unknown_ids
from searchkit.validation import check_optional_text, checked_batch

DEFAULT_MODEL = "builtin"


@dataclass
class EncodeStats:
    """Totals since the embedder was created.

    Args:
        texts: Embedded.
        tokens: Of those texts as the model got them, special tokens included.
        truncated: Texts that were too long.
        unknown: Tokens of passages that are not in the model's vocabulary: a script it was not trained on, emoji.
        unreadable: Passages that consist mostly of such tokens, so that their vectors say little.
    """

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    unknown: int = 0
    unreadable: int = 0


class Embedder:
    """A model with its conventions: queries and passages in, unit rows out.

    Args:
        model: A local folder, a hub id, the name of a model that a package carries ("builtin", "minilm"), or a model
            on a server: "openai:NAME@http://host:8000/v1".
        adapter: Folder or hub id of a PEFT adapter trained on the model.
        device: "cpu", "cuda", "cuda:1", "mps"; None picks the best available. Exported models run on the CPU even
            with "cuda", which then is for the vectors only; with several GPUs ("cuda:0,1") the model runs on the first.
        dtype: "auto" (bfloat16 where the hardware is fast at it), "float32", "bfloat16" or "float16".
        max_length: Most tokens of one input; None uses the model's own limit.
        dim: Keep this many leading dimensions (Matryoshka) and normalise again; None keeps all.
        force_dim: Allow `dim` on a model that was not trained for it.
        conventions: Overrides what the model's folder and the table of families say.
        token_budget: Padded tokens in a batch; None picks one that suits the device.
        threads: CPU threads for the model; None leaves it to the runtime, which usually uses all cores. In torch this
            is a setting of the whole process. For a model on a server, requests at the same time; None for 4.

    Raises:
        InputError: The model cannot be used as requested; the message says what to change.
        RemoteError: The model's server cannot be reached, or gives no usable answer.
        MissingExtraError: The library that runs the model is not installed.
    """

    def __init__(
        self,
        model: str | Path | RemoteModel = DEFAULT_MODEL,
        *,
        adapter: str | Path | None = None,
        device: str | None = None,
        dtype: str = "auto",
        max_length: int | None = None,
        dim: int | None = None,
        force_dim: bool = False,
        conventions: Conventions | None = None,
        token_budget: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._model = load_model(
            model, adapter=adapter, device=device, dtype=dtype, threads=threads, conventions=conventions
        )
        self.name, self.runtime, self.frame = self._model.name, self._model.runtime, self._model.frame
        self.adapter = self._model.adapter_name
        self.conventions = self._model.conventions
        self.set_max_length(max_length)
        self.dim = self._model.width(dim, force=force_dim)
        self._batches = Batches(self.runtime, token_budget)
        self._shifted: ShiftedQueries | None = None
        if isinstance(self.runtime, OnnxRuntime) and self.runtime.shift is not None:
            self._shifted = ShiftedQueries(self.runtime.shift, self.runtime, self._batches)
        self.stats = EncodeStats()
        self._fingerprint: dict[str, Any] | None = None

    # What the model is

    @property
    def folder(self) -> Path:
        """The model's files; InputError if they are on a server."""
        return self._model.files

    @property
    def settings_folder(self) -> Path:
        """Where its settings are: the folder, or that of an adapter with settings of its own."""
        return settings_of(self.folder, self._model.adapter)

    @property
    def short_name(self) -> str:
        """The name without the folders or the address around it."""
        if isinstance(self.runtime, RemoteRuntime):
            return self.runtime.model.short_name
        return Path(self.adapter or self.name).name

    @property
    def framework(self) -> str:
        """What computes: "ONNX", "PyTorch" or "API"."""
        if isinstance(self.runtime, RemoteRuntime):
            return "API"
        return "ONNX" if isinstance(self.runtime, OnnxRuntime) else "PyTorch"

    @property
    def dtype(self) -> str:
        """The type the model computes in; rows are always float32."""
        return self.runtime.dtype

    @property
    def max_length(self) -> int:
        """Most tokens of one input, special tokens included."""
        return self.conventions.max_length

    @property
    def token_budget(self) -> int:
        """Padded tokens in a batch; less once memory was too small for it."""
        return self._batches.token_budget

    @property
    def instruction_shift(self) -> str | None:
        """Checksum of what shifts queries by their instruction, here or on the model's server; None for no shift."""
        if isinstance(self.runtime, RemoteRuntime):
            return self.runtime.instruction_shift if self.runtime.composes(self.conventions) else None
        return self._shifted.shift.digest if self._shifted else None

    @property
    def shifts_queries(self) -> bool:
        """Whether an instruction shifts the vectors of its queries, instead of being read in front of them."""
        return self.instruction_shift is not None

    @property
    def special_tokens(self) -> int:
        """How many tokens of `max_length` the special tokens take."""
        return sum(map(len, self.frame))

    def identity(self) -> dict[str, Any]:
        """What an index is bound to: equal identities give equal vectors (up to `dtype`)."""
        if self._fingerprint is None:
            self._fingerprint = self._model.fingerprints()
        conventions = asdict(self.conventions)
        for name, default in (("query_repeats", 1), ("pool_prompt", True)):
            if conventions[name] == default:  # indexes made before these settings existed do not record them
                del conventions[name]
        shift = self.instruction_shift
        return {
            "model": self.name,
            "adapter": self.adapter,
            **self._fingerprint,
            **({"instruction_shift": shift} if shift else {}),
            "dim": self.dim,
            "normalized": True,
            **conventions,
        }

    def set_max_length(self, max_length: int | None) -> None:
        """Truncate texts at `max_length` tokens from now on; None is the model's own limit.

        Raises:
            InputError: The model cannot take texts of that length.
        """
        longest = self.runtime.longest
        length = max_length or min(self.conventions.max_length, longest or self.conventions.max_length)
        if length < 8 or (longest and length > longest):
            raise InputError(f"max_length is {length}; {self.name} takes 8 to {longest or 'any number of'} tokens")
        self.conventions = replace(self.conventions, max_length=length)

    def forget_identity(self) -> None:
        """Call after changing the weights in memory: `identity` must not vouch for files that differ from them."""
        self._fingerprint = {"weights": f"in memory {secrets.token_hex(16)}"}

    # Texts to rows

    def encode_queries(self, queries: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Embed queries with an instruction: in front of each, or as a shift where the model has one.

        Args:
            queries: The texts.
            instruction: One sentence that says what to find; None uses the model's default, "" none at all.

        Returns:
            (len(queries), dim) float32 rows of unit length.

        Raises:
            InputError: `queries` are not strings, the instruction leaves no room for a query, or the model returned a
                vector that is not finite.
        """
        queries = checked_batch("queries", queries)
        check_optional_text("instruction", instruction)
        instruction = self.resolved_instruction(instruction)
        instructions = [instruction] * len(queries)
        return self._encode(self.tokenize_queries(queries, instructions), instructions=instructions)

    def encode_passages(self, passages: Sequence[str], on_batch: Callable[[int], None] | None = None) -> np.ndarray:
        """Embed passages. They never get an instruction.

        Args:
            passages: The texts.
            on_batch: Called after every batch with the number of texts in it.

        Returns:
            (len(passages), dim) float32 rows of unit length.

        Raises:
            InputError: `passages` are not strings, or the model returned a vector that is not finite.
        """
        passages = checked_batch("passages", passages)
        tokens = self.tokenize(self._prefixed(passages))
        for passage, ids in zip(passages, tokens, strict=True):
            if not passage.isascii():
                unknown = self._count_unknown(ids)
                self.stats.unknown += unknown
                self.stats.unreadable += unknown > UNREADABLE * (len(ids) - self.special_tokens)
        return self._encode(tokens, on_batch)

    def encode_symmetric(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Embed texts that are compared with their like, such as translations, and not with documents.

        With an instruction, or a model that puts a prefix before documents, they are embedded as queries. Otherwise
        they are embedded as plain texts: a query prefix alone is for searching.

        Args:
            texts: Both sides of the comparison are embedded this way.
            instruction: One sentence that says what is compared; None uses the model's default, "" none at all.

        Returns:
            (len(texts), dim) float32 rows of unit length.
        """
        if self.resolved_instruction(instruction) or self.conventions.document_prefix:
            return self.encode_queries(texts, instruction)
        return self.encode_passages(texts)

    # Texts to tokens

    def query_tokens(self, queries: Sequence[str], instruction: str | None = None) -> list[int]:
        """Tokens of each query as the model reads it, once; above `max_length` it is truncated."""
        instruction = self._in_front(self.resolved_instruction(instruction))
        prompts = [self.conventions.prompt(query, instruction, 1) for query in queries]
        return [len(ids) + self.special_tokens for ids in self._ids(prompts)]

    def passage_tokens(self, passages: Sequence[str]) -> list[int]:
        """Tokens of each passage with special tokens; above `max_length` it is truncated."""
        return [len(ids) + self.special_tokens for ids in self._ids(self._prefixed(passages))]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as the model gets them: truncated to `max_length`, between special tokens.

        A token that pooling leaves out, of a document's prefix, is the negative ``~id``.
        """
        framed = [self._framed(ids) for ids in self._ids(texts)]
        prefix = self.conventions.document_prefix
        if prefix and not self.conventions.pool_prompt:
            framed = [
                self._left_out(ids, prefix) if text.startswith(prefix) else ids
                for text, ids in zip(texts, framed, strict=True)
            ]
        return framed

    def tokenize_queries(self, queries: Sequence[str], instructions: Sequence[str]) -> list[list[int]]:
        """Token ids of each query as the model gets them, each with its own instruction; "" is none.

        They do not say it all where a model shifts queries by their instruction: `encode_tokens` needs that too.
        """
        if isinstance(self.runtime, RemoteRuntime) and self.runtime.composes(self.conventions):
            return [self.runtime.query_ids(*pair) for pair in zip(queries, instructions, strict=True)]
        instructions = [*map(self._in_front, instructions)]
        framed = [self._framed(ids) for ids in self._query_ids(queries, instructions)]
        if self.conventions.pool_prompt:
            return framed
        heads = [self.conventions.prompt("", instruction, 1) for instruction in instructions]
        return [self._left_out(ids, head) for ids, head in zip(framed, heads, strict=True)]

    def _left_out(self, ids: list[int], prompt: str) -> list[int]:
        """Ids with those of a prompt, and of the special tokens before it, marked as not pooled."""
        if not prompt:
            return ids
        count = min(len(self.frame[0]) + len(self._ids([prompt])[0]), len(ids) - 1)
        return [~id for id in ids[:count]] + ids[count:]

    def unknown_shares(self, texts: Sequence[str]) -> list[float]:
        """For each text, the share of its tokens that are not in the model's vocabulary (see `EncodeStats`)."""
        if all(text.isascii() for text in texts):
            return [0.0] * len(texts)
        return [self._count_unknown(ids) / max(1, len(ids)) for ids in self._ids(texts)]

    def _count_unknown(self, ids: list[int]) -> int:
        return sum(id in self._unknown_ids for id in ids)

    @cached_property
    def _unknown_ids(self) -> frozenset[int]:
        return unknown_ids(self.runtime.tokenizer)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Character span (start, stop) of each token of `text`, for cutting a long text into passages."""
        return list(self.runtime.tokenizer.encode(text, add_special_tokens=False).offsets)

    def resolved_instruction(self, instruction: str | None) -> str:
        """The instruction, or the model's default for None; InputError when it leaves no room for a query."""
        if instruction is None:
            instruction = self.conventions.default_instruction
        if not instruction or not instruction.strip():
            return ""
        texts = (instruction, "") if self.shifts_queries else ("", instruction)  # read alone, or in front of a query
        count = len(self._ids([self.conventions.prompt(*texts, 1)])[0]) + self.special_tokens
        if count >= self.max_length + self.shifts_queries:
            rest = "" if self.shifts_queries else " and leaves no room for a query"
            raise InputError(f"the instruction takes {count} of {self.max_length} tokens{rest}; shorten it")
        return instruction

    def _in_front(self, instruction: str) -> str:
        """What of an instruction goes in front of its queries; nothing for a model that shifts them."""
        return "" if self.shifts_queries else instruction

    def _query_ids(self, queries: Sequence[str], instructions: Sequence[str]) -> list[list[int]]:
        """Token ids of each query, without special tokens, repeated as often as fits whole; once may be too long."""
        prompt, room = self.conventions.prompt, self.max_length - self.special_tokens
        pairs = list(zip(queries, instructions, strict=True))
        tokens = self._ids([prompt(*pair) for pair in pairs])
        for repeats in range(self.conventions.query_repeats - 1, 0, -1):
            too_long = [i for i, ids in enumerate(tokens) if len(ids) > room]
            for i, ids in zip(too_long, self._ids([prompt(*pairs[i], repeats) for i in too_long]), strict=True):
                tokens[i] = ids
        return tokens

    def _prefixed(self, passages: Sequence[str]) -> list[str]:
        return [self.conventions.document_prefix + passage for passage in passages]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self.runtime.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _framed(self, ids: list[int]) -> list[int]:
        if isinstance(self.runtime, RemoteRuntime):  # it truncates by itself; here tokens are estimated
            return ids
        room = self.max_length - self.special_tokens
        if len(ids) > room:
            self.stats.truncated += 1
            ids = ids[:room]
        before, after = self.frame
        return [*before, *ids, *after]  # added after truncation, so that EOS survives it

    # Tokens to rows

    def encode_tokens(self, tokens: list[list[int]], instructions: Sequence[str] = ()) -> np.ndarray:
        """Embed token ids, as `tokenize` and `tokenize_queries` return them, as (len(tokens), dim) float32 unit rows.

        Args:
            tokens: Of queries and passages.
            instructions: That of each, "" for none and for passages; empty when none has any.

        Raises:
            InputError: The model returned a vector that is not finite.
        """
        return self._encode(tokens, instructions=instructions)

    def _encode(
        self,
        tokens: list[list[int]],
        on_batch: Callable[[int], None] | None = None,
        *,
        instructions: Sequence[str] = (),
    ) -> np.ndarray:
        before = self._truncated_by_server
        shifts = self._shifts(instructions)

        def compute(batch: list[int]) -> np.ndarray:
            some = [tokens[i] for i in batch]
            if self._shifted and not shifts.keys().isdisjoint(batch):
                return self._shifted.forward(some, [shifts.get(i) for i in batch], self.conventions)
            return self.runtime.forward(some, self.conventions)

        rows = self._batches.rows([len(ids) for ids in tokens], self.dim, compute, on_batch)
        self.stats.texts += len(tokens)
        self.stats.tokens += sum(map(len, tokens))
        self.stats.truncated += self._truncated_by_server - before
        return rows

    @property
    def _truncated_by_server(self) -> int:
        return self.runtime.truncated if isinstance(self.runtime, RemoteRuntime) else 0

    def _shifts(self, instructions: Sequence[str]) -> dict[int, np.ndarray]:
        """{position: what is added to the unit row that the graph gives for the text there}, where that is not zero."""
        if self._shifted is None:
            return {}
        names = list(dict.fromkeys(filter(str.strip, instructions)))
        read = self.tokenize_queries(names, [""] * len(names))
        # Of an instruction without any token, such as an invisible character, there is nothing to read.
        tokens = {name: tuple(ids) for name, ids in zip(names, read, strict=True) if len(ids) > self.special_tokens}
        shifts = self._shifted.shifts(tokens.values(), self.conventions)
        moving = {name: shifts[ids] for name, ids in tokens.items() if shifts[ids].any()}
        return {position: moving[name] for position, name in enumerate(instructions) if name in moving}
