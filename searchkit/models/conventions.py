"""How a model is to be used: pooling, templates, EOS, lengths; read from its folder or from the table of families.

What the folder itself says (in the sentence-transformers layout) takes precedence, because it was saved with the
weights; the table fills in for folders that hold a bare transformers model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.tasks import E5_TEMPLATE, WEB_SEARCH, format_query

MODULES = "modules.json"
"""The file that marks a folder as one in the sentence-transformers layout."""

SETTINGS = "config_sentence_transformers.json"
"""Prompts and further settings of such a folder."""


@dataclass(frozen=True, slots=True)
class Conventions:
    """What happens to a text before and after the model, as in its training.

    Args:
        pooling: A key of :data:`searchkit.models.pooling.POOLINGS`.
        instructed: Query template with ``{instruction}`` and ``{query}``.
        default_instruction: Used when a search gives none; with None such a query gets `query_prefix`.
        query_prefix: Goes before a query that has no instruction.
        query_repeats: How often the query is repeated after its instruction or prefix; the second time, a causal model
            has already seen all of it. A long query is repeated as often as it fits, and appears at least once.
        document_prefix: Goes before every document; empty for instruction-trained models.
        append_eos: The model pools at EOS, so every text must end with it, whatever the tokenizer does.
        padding_side: "right" or "left"; the vectors are the same up to rounding.
        max_length: Most tokens of one input, special tokens included.
        smallest_dim: Smallest width that Matryoshka training covered; None without such training.
    """

    pooling: str = "mean"
    instructed: str = E5_TEMPLATE
    default_instruction: str | None = None
    query_prefix: str = ""
    query_repeats: int = 1
    document_prefix: str = ""
    append_eos: bool = False
    padding_side: str = "right"
    max_length: int = 512
    smallest_dim: int | None = None

    def prompt(self, query: str, instruction: str, repeats: int | None = None) -> str:
        """A query as the model reads it.

        Args:
            query: The query alone.
            instruction: One sentence that says what to find; "" is none.
            repeats: Overrides `query_repeats`.
        """
        query = " ".join([query] * (repeats or self.query_repeats))
        return format_query(self.instructed, query, instruction) if instruction else self.query_prefix + query


FAMILIES: dict[str, Conventions] = {
    # pattern searched for in the lower-case model name -> conventions published with the model
    r"e5-mistral": Conventions(
        pooling="last", default_instruction=WEB_SEARCH, append_eos=True, padding_side="right", max_length=4096
    ),
    r"qwen3-embedding": Conventions(
        pooling="last",
        instructed="Instruct: {instruction}\nQuery:{query}",  # no space after the colon, unlike E5
        default_instruction=WEB_SEARCH,
        append_eos=True,
        padding_side="left",
        max_length=8192,
        smallest_dim=32,
    ),
    r"gte-qwen2|sfr-embedding|linq-embed-mistral": Conventions(
        pooling="last", default_instruction=WEB_SEARCH, append_eos=True, max_length=4096
    ),
    r"multilingual-e5-large-instruct": Conventions(default_instruction=WEB_SEARCH),
    r"\be5-(small|base|large)|multilingual-e5": Conventions(query_prefix="query: ", document_prefix="passage: "),
    r"bge-.*-en": Conventions(pooling="cls", query_prefix="Represent this sentence for searching relevant passages: "),
    r"minilm|mpnet|gte-(small|base|large)": Conventions(),
}


def conventions_of(folder: Path, name: str, *, decoder: bool) -> Conventions:
    """The conventions of the model in `folder`.

    Args:
        folder: Local folder with the model's files.
        name: Hub id or folder name, matched against :data:`FAMILIES`.
        decoder: Whether attention is causal; decides the pooling if nothing else does.

    Raises:
        InputError: The folder describes a pipeline that this project cannot reproduce.
    """
    conventions = family_conventions(name) or Conventions(pooling="last" if decoder else "mean")
    return _from_sentence_transformers(folder, conventions)


def is_embedder(folder: Path, name: str) -> bool:
    """Whether the model is known to be trained to embed: by its folder's layout, or by the table of families."""
    return (folder / MODULES).is_file() or family_conventions(name) is not None


def family_conventions(name: str) -> Conventions | None:
    """The conventions of the family that a model's name shows; None for an unknown one."""
    return next((c for pattern, c in FAMILIES.items() if re.search(pattern, name.lower())), None)


_SENTENCE_TRANSFORMERS_POOLING = {
    "lasttoken": "last",
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean",  # the same direction, and rows are normalised
    "weightedmean": "weighted-mean",
    "weightedmean_tokens": "weighted-mean",
    "max": "max",
    "max_tokens": "max",
}


def _from_sentence_transformers(folder: Path, conventions: Conventions) -> Conventions:
    for module in _read_json(folder / MODULES) or []:
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            conventions = replace(conventions, pooling=_pooling(folder / module["path"] / "config.json"))
        elif kind == "Transformer":
            conventions = replace(
                conventions, max_length=_max_length(folder / module["path"]) or conventions.max_length
            )
        elif kind != "Normalize":  # rows are always normalised here
            raise InputError(
                f"{folder / MODULES} names a {kind} module; expected Transformer, Pooling and Normalize only. "
                "Use a model without it, or fold it into the weights"
            )
    settings = _read_json(folder / SETTINGS) or {}
    prompts = settings.get("prompts") or {}
    conventions = _with_prompts(conventions, prompts)
    if settings.get("instructed"):
        conventions = replace(conventions, instructed=settings["instructed"])
    repeats = settings.get("query_repeats", 1)
    if not isinstance(repeats, int) or repeats < 1:
        raise InputError(f"{folder / SETTINGS} has query_repeats {repeats!r}; expected an integer, 1 or more")
    conventions = replace(conventions, query_repeats=repeats)
    if "append_eos" in settings:
        if not isinstance(settings["append_eos"], bool):
            raise InputError(f"{folder / SETTINGS} has append_eos {settings['append_eos']!r}; expected true or false")
        conventions = replace(conventions, append_eos=settings["append_eos"])
    if settings.get("matryoshka_dims"):
        conventions = replace(conventions, smallest_dim=min(settings["matryoshka_dims"]))
    return conventions


def _max_length(folder: Path) -> int | None:
    # Its own file up to sentence-transformers 5, the tokenizer's from 6 on, where 1e30 stands for "no limit".
    own = (_read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    length = own or (_read_json(folder / "tokenizer_config.json") or {}).get("model_max_length")
    return int(length) if length and length < 10**9 else None


def _pooling(file: Path) -> str:
    config = _read_json(file) or {}
    if config.get("include_prompt") is False:
        raise InputError(
            f"{file} leaves the prompt out of pooling (include_prompt: false), which is not supported; "
            "use another model"
        )
    modes = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    if config.get("pooling_mode"):
        named = config["pooling_mode"]
        modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in _SENTENCE_TRANSFORMERS_POOLING:
        known = ", ".join(sorted(_SENTENCE_TRANSFORMERS_POOLING))
        raise InputError(f"{file} asks for pooling {modes or 'of no kind'}; expected exactly one of {known}")
    return _SENTENCE_TRANSFORMERS_POOLING[modes[0]]


def _with_prompts(conventions: Conventions, prompts: dict[str, str]) -> Conventions:
    query = prompts.get("query", "")
    instructed = re.fullmatch(r"(?P<before>.*?Instruct: )(?P<instruction>.+?)(?P<after>\n.*)", query, re.DOTALL)
    if instructed:  # the prompt is a template with an instruction filled in
        conventions = replace(
            conventions,
            instructed=instructed["before"] + "{instruction}" + instructed["after"] + "{query}",
            default_instruction=instructed["instruction"],
        )
    elif query:
        conventions = replace(conventions, query_prefix=query, default_instruction=None)
    for key in ("document", "passage"):
        if prompts.get(key):
            conventions = replace(conventions, document_prefix=prompts[key])
    return conventions


_SAMPLED_BYTES = 256 << 20


def fingerprint(folder: Path) -> str:
    """SHA-256, as hex, of what decides a model's vectors: weights, tokenizer and config files, not their path.

    Weight files above 256 MiB are sampled (every tensor's first and last 32 KiB), so that opening an index of a 7B
    model does not read 14 GB; training changes a tensor almost everywhere.
    """
    digest = hashlib.sha256()
    for file in sorted(_model_files(folder), key=lambda file: file.name):
        digest.update(file.name.encode() + b"\0")
        if file.suffix == ".safetensors" and file.stat().st_size > _SAMPLED_BYTES:
            _digest_tensors(file, digest)
        else:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _model_files(folder: Path) -> Iterator[Path]:
    names = {
        "config.json", "tokenizer.json", "adapter_config.json", "base_config.json", "vocab.txt", "tokenizer.model",
    }  # fmt: skip
    weights = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".onnx")]
    if not weights:  # older models ship a pickle, which transformers loads with weights_only
        weights = [file for file in folder.iterdir() if file.suffix == ".bin"]
    yield from weights
    yield from (file for file in folder.iterdir() if file.name in names)


def _digest_tensors(file: Path, digest: Any) -> None:
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = stream.read(size)
        digest.update(header)
        for name, tensor in sorted(json.loads(header).items()):
            if name == "__metadata__":
                continue
            start, stop = tensor["data_offsets"]
            for offset in (start, max(start, stop - (32 << 10))):
                stream.seek(8 + size + offset)
                digest.update(stream.read(min(32 << 10, stop - offset)))


def _read_json(file: Path) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON ({error}); download the model again") from None
