"""Texts to unit-length float32 rows."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from searchkit.errors import InputError
from searchkit.models.conventions import (
    MODULES,
    Conventions,
    code_fingerprint,
    conventions_of,
    fingerprint,
    is_embedder,
)  # fmt: skip
from searchkit.models.framing import frame_of
from searchkit.models.instruction_shift import InstructionShift
from searchkit.models.location import family_name, find_adapter, find_model
from searchkit.models.remote.address import RemoteModel, is_remote, parse_remote
from searchkit.models.remote.runtime import RemoteRuntime, encode_probes
from searchkit.models.runtime import Runtime, load_errors, load_runtime
from searchkit.models.vocabulary import unknown_ids
from searchkit.validation import check_optional_text, checked_batch

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "builtin"
UNREADABLE = 1 / 3
"""Share of unknown tokens above which a text counts as unreadable to the model."""


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
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; expected 1 or more, or None to leave it to the runtime")
        self.adapter = None if adapter is None else str(adapter)
        self._adapter_folder: Path | None = None
        self.runtime: Runtime
        remote = model if isinstance(model, RemoteModel) else None
        if is_remote(str(model)):
            remote = remote or parse_remote(str(model))
            if adapter is not None or dtype != "auto":
                came = "an adapter" if adapter is not None else f"dtype {dtype}"
                raise InputError(f"{came} came with {remote}; what its server computes with is set there")
            self.name = str(remote)
            self._folder = None
            self.runtime = server = RemoteRuntime(remote, threads)
            self.conventions = conventions or server.conventions()
            self.frame: tuple[list[int], list[int]] = [], []  # the server adds special tokens
        else:
            self._folder, self.name = find_model(str(model))
            self._load(self._folder, adapter, device, dtype, threads, conventions)
        self.set_max_length(max_length)
        self.dim = self._checked_dim(dim, force_dim)
        self.token_budget = token_budget or self.runtime.token_budget
        self.stats = EncodeStats()
        self._fingerprint: dict[str, Any] | None = None
        self._shift: InstructionShift | None = getattr(self.runtime, "shift", None)

    def _load(
        self,
        folder: Path,
        adapter: str | Path | None,
        device: str | None,
        dtype: str,
        threads: int | None,
        conventions: Conventions | None,
    ) -> None:
        """Load a model whose files are here."""
        if adapter is not None:
            self._adapter_folder = find_adapter(str(adapter))
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            with load_errors(self.name):
                base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
            raise InputError(f"{self.name} is an adapter, not a model; use --model {base} --adapter {self.name}")
        self.runtime = load_runtime(folder, self.name, self._adapter_folder, device, dtype, threads)
        # An adapter written by `searchkit train` carries settings of its own, which may differ from the base's.
        own_settings = self._adapter_folder is not None and (self._adapter_folder / MODULES).is_file()
        self.settings_folder = self._adapter_folder if self._adapter_folder and own_settings else folder
        family, decoder = family_name(self.name), self.runtime.decoder
        if decoder and not (conventions or adapter or is_embedder(self.settings_folder, family)):
            _warn_untrained(self.name)
        with load_errors(self.name):
            self.conventions = conventions or conventions_of(self.settings_folder, family, decoder=decoder)
        self.frame = frame_of(self.runtime, self.conventions, self.name)

    # What the model is

    @property
    def folder(self) -> Path:
        """The model's files; InputError if they are on a server."""
        if self._folder is None:
            raise InputError(f"the files of {self.name} are on its server; this needs them here: name a model folder")
        return self._folder

    @property
    def short_name(self) -> str:
        """The name without the folders or the address around it."""
        if isinstance(self.runtime, RemoteRuntime):
            return self.runtime.model.short_name
        return Path(self.adapter or self.name).name

    @property
    def framework(self) -> str:
        """What computes: "ONNX", "PyTorch" or "API"."""
        if self._folder is None:
            return "API"
        return "PyTorch" if type(self.runtime).__name__ == "TorchRuntime" else "ONNX"

    @property
    def dtype(self) -> str:
        """The type the model computes in; rows are always float32."""
        return self.runtime.dtype

    @property
    def max_length(self) -> int:
        """Most tokens of one input, special tokens included."""
        return self.conventions.max_length

    @property
    def shifts_queries(self) -> bool:
        """Whether an instruction shifts the vectors of its queries, instead of being read in front of them."""
        return self._shift is not None

    @property
    def special_tokens(self) -> int:
        """How many tokens of `max_length` the special tokens take."""
        return sum(map(len, self.frame))

    def identity(self) -> dict[str, Any]:
        """What an index is bound to: equal identities give equal vectors (up to `dtype`)."""
        if isinstance(self.runtime, RemoteRuntime):
            self._fingerprint = {"probes": encode_probes(self.runtime.probes)}
        elif self._fingerprint is None:
            self._fingerprint = {"weights": fingerprint(self.folder)}
            if getattr(self.runtime, "own_code", False):
                self._fingerprint["code"] = code_fingerprint(self.folder)
            if self._shift is not None:
                self._fingerprint["instruction_shift"] = self._shift.digest
            if self._adapter_folder is not None:
                self._fingerprint["adapter_weights"] = fingerprint(self._adapter_folder)
        conventions = asdict(self.conventions)
        for name, default in (("query_repeats", 1), ("pool_prompt", True)):
            if conventions[name] == default:  # indexes made before these settings existed do not record them
                del conventions[name]
        return {
            "model": self.name,
            "adapter": self.adapter,
            **self._fingerprint,
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
        texts = (instruction, "") if self._shift else ("", instruction)  # read alone, or in front of a query
        count = len(self._ids([self.conventions.prompt(*texts, 1)])[0]) + self.special_tokens
        if count >= self.max_length + self.shifts_queries:
            rest = "" if self._shift else " and leaves no room for a query"
            raise InputError(f"the instruction takes {count} of {self.max_length} tokens{rest}; shorten it")
        return instruction

    def _in_front(self, instruction: str) -> str:
        """What of an instruction goes in front of its queries; nothing for a model that shifts them."""
        return "" if self._shift else instruction

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
        if self._folder is None:  # a server truncates by itself; here tokens are estimated
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
        rows = np.empty((len(tokens), self.dim), dtype=np.float32)
        with closing(self._computed(tokens, self._shifts(instructions))) as computed:
            for batch, vectors in computed:
                rows[batch] = vectors
                if on_batch:
                    on_batch(len(batch))
        self.stats.texts += len(tokens)
        self.stats.tokens += sum(map(len, tokens))
        self.stats.truncated += self._truncated_by_server - before
        return rows

    @property
    def _truncated_by_server(self) -> int:
        return self.runtime.truncated if isinstance(self.runtime, RemoteRuntime) else 0

    def _shifts(self, instructions: Sequence[str]) -> dict[int, np.ndarray]:
        """{position: what is added to the unit row that the graph gives for the text there}."""
        if self._shift is None:
            return {}
        names = list(dict.fromkeys(filter(str.strip, instructions)))
        read = self.tokenize_queries(names, [""] * len(names))
        # Of an instruction without any token, such as an invisible character, there is nothing to read.
        tokens = {name: tuple(ids) for name, ids in zip(names, read, strict=True) if len(ids) > self.special_tokens}
        known = {ids: shift for ids in tokens.values() if (shift := self._shift.kept(ids)) is not None}
        new = list(dict.fromkeys(ids for ids in tokens.values() if ids not in known))
        for batch in self._batches([len(ids) for ids in new]):
            pooled = self._halved(batch, lambda some: self._pooled([list(new[i]) for i in some]))
            for i, shift in zip(batch, self._shift(unit_rows(pooled)), strict=True):
                self._shift.keep(new[i], shift)
                known[new[i]] = shift
        return {position: known[tokens[name]] for position, name in enumerate(instructions) if name in tokens}

    def _pooled(self, batch: list[list[int]]) -> np.ndarray:
        """What the graph of a model with a shift gives, before the map beside it."""
        return np.asarray(cast(Any, self.runtime).pooled(batch, self.conventions))

    def _computed(
        self, tokens: list[list[int]], shifts: dict[int, np.ndarray]
    ) -> Generator[tuple[list[int], np.ndarray], None, None]:
        """Each batch with its rows, from as many threads as the runtime takes."""

        def compute(batch: list[int]) -> tuple[list[int], np.ndarray]:
            return batch, self._rows([tokens[i] for i in batch], [shifts.get(i) for i in batch])

        batches = self._batches([len(ids) for ids in tokens])
        small = sum(map(len, tokens)) <= self.token_budget and len(tokens) <= self.runtime.most_texts
        if self.runtime.workers == 1 or small:
            yield from map(compute, batches)  # one after another, so that a budget cut for memory holds for the rest
            return
        pool = ThreadPoolExecutor(self.runtime.workers)
        try:
            yield from pool.map(compute, batches)
        finally:
            pool.shutdown(cancel_futures=True)

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Positions in batches of similar length, longest first, so that a batch too large for memory shows at once."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        start = 0
        while start < len(order):
            size = max(1, min(self.token_budget // max(1, lengths[order[start]]), self.runtime.most_texts))
            yield order[start : start + size]
            start += size

    def _rows(self, batch: list[list[int]], shifts: Sequence[np.ndarray | None]) -> np.ndarray:
        def compute(some: list[int]) -> np.ndarray:
            part = [batch[i] for i in some]
            if any(shifts[i] is not None for i in some):
                return self._shifted(part, [shifts[i] for i in some])
            return self.runtime.forward(part, self.conventions)

        return unit_rows(self._halved(list(range(len(batch))), compute)[:, : self.dim])

    def _halved(self, batch: list[int], compute: Callable[[list[int]], np.ndarray]) -> np.ndarray:
        """What `compute` gives for a batch, in halves where memory is too small for it."""
        try:
            return compute(batch)
        except MemoryError:
            if len(batch) == 1:
                raise
            self.token_budget = max(1, self.token_budget // 2)
            logger.warning("out of memory: continuing with batches of %d tokens", self.token_budget)
            middle = len(batch) // 2
            return np.concatenate([self._halved(batch[:middle], compute), self._halved(batch[middle:], compute)])

    def _shifted(self, batch: list[list[int]], shifts: Sequence[np.ndarray | None]) -> np.ndarray:
        """As the runtime's `forward`, with the texts that have a shift moved by it before the map beside the graph.

        A query under several instructions is computed once.
        """
        places = {tuple(ids): place for place, ids in enumerate(dict.fromkeys(map(tuple, batch)))}
        pooled = self._pooled([list(ids) for ids in places])
        pooled = pooled[[places[tuple(ids)] for ids in batch]]
        for row, shift in enumerate(shifts):
            if shift is not None:
                pooled[row] = unit_rows(pooled[row : row + 1])[0] + shift
        return np.asarray(cast(Any, self.runtime).mapped(pooled))

    def _checked_dim(self, dim: int | None, force: bool) -> int:
        full, smallest = self.runtime.hidden_size, self.conventions.smallest_dim
        width = dim or full
        if not 1 <= width <= full:
            raise InputError(f"dim is {dim}; {self.name} gives vectors of {full} dimensions, so 1 to {full}")
        if width < full and not force and (smallest is None or width < smallest):
            trained = f"down to {smallest} dimensions" if smallest else "at its full width only"
            raise InputError(
                f"dim is {dim} but {self.name} was trained {trained}, and truncating it further costs quality; "
                "force it with --force-dim if you have measured that"
            )
        return width


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, as float32; InputError for a row that is zero or not finite."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0)
    if bad.any():
        raise InputError(
            f"the model returned {int(bad.sum())} of {len(vectors)} vectors that are zero or not finite; "
            "no search would ever return them. Try --dtype float32"
        )
    return np.asarray(vectors / lengths)


@cache  # one warning per model
def _warn_untrained(name: str) -> None:
    logger.warning(
        "%s is a language model that was not trained to embed, so its vectors search poorly. "
        "Train it first: searchkit train PAIRS --base %s --out OUT",
        name, name,
    )  # fmt: skip
