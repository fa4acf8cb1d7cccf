"""How a model is to be used: pooling, templates, EOS, lengths; read from its folder or from the table of families.

What the folder itself says (in the sentence-transformers layout) takes precedence, because it was saved with the
weights; the table fills in for folders that hold a bare transformers model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.models.instruction_shift import SHIFT_FILE
from searchkit.tasks import E5_TEMPLATE, WEB_SEARCH, format_query

logger = logging.getLogger(__name__)

MODULES = "modules.json"
"""The file that marks a folder as one in the sentence-transformers layout."""

SETTINGS = "config_sentence_transformers.json"
"""Prompts and further settings of such a folder."""


@dataclass(frozen=True, slots=True)
class Conventions:
    """What happens to a text before and after the model, as in its training.

    Args:
        pooling: A key of :data:`searchkit.models.pooling.POOLINGS`.
        pool_prompt: Pooling includes the tokens of instruction and prefix; sentence-transformers' include_prompt.
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
    pool_prompt: bool = True

    def prompt(self, query: str, instruction: str, repeats: int | None = None) -> str:
        """A query as the model reads it.

        Args:
            query: The query alone.
            instruction: One sentence that says what to find; "" is none.
            repeats: Overrides `query_repeats`.
        """
        query = " ".join([query] * (repeats or self.query_repeats))
        return format_query(self.instructed, query, instruction) if instruction else self.query_prefix + query


_SEARCHING = "Represent this sentence for searching relevant passages: "

_NOMIC = Conventions(
    query_prefix="search_query: ", document_prefix="search_document: ", max_length=2048, smallest_dim=64
)

FAMILIES: dict[str, Conventions] = {
    # pattern searched for in the lower-case model name -> conventions published with the model; the first match counts
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
    r"embeddinggemma": Conventions(
        instructed="task: {instruction} | query: {query}",
        query_prefix="task: search result | query: ",
        document_prefix="title: none | text: ",
        max_length=2048,
        smallest_dim=128,
    ),
    r"multilingual-e5-.*instruct": Conventions(default_instruction=WEB_SEARCH),
    r"\be5-(small|base|large)|multilingual-e5": Conventions(query_prefix="query: ", document_prefix="passage: "),
    r"bge-m3": Conventions(pooling="cls", max_length=8192),
    r"bge-.*-en": Conventions(pooling="cls", query_prefix=_SEARCHING),
    r"nomic-embed-text-v1($|[^.])": replace(_NOMIC, smallest_dim=None),
    r"nomic-embed-text-v2": replace(_NOMIC, max_length=512, smallest_dim=256),
    r"nomic-embed-text": _NOMIC,  # version 1.5; Ollama's name has none
    r"arctic-embed.*v2": Conventions(pooling="cls", query_prefix="query: ", max_length=8192, smallest_dim=256),
    r"arctic-embed-m-v1\.5": Conventions(pooling="cls", query_prefix=_SEARCHING, smallest_dim=256),
    r"arctic-embed|mxbai-embed": Conventions(pooling="cls", query_prefix=_SEARCHING),
    r"text-embedding-3": Conventions(max_length=8191, smallest_dim=256),  # OpenAI's, over the wire
    r"gte-.*-en-v1\.5|gte-multilingual": Conventions(pooling="cls", max_length=8192),
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
    modules = [(module["type"], module["path"]) for module in _read_json(folder / MODULES) or []]
    for type_, _ in modules:
        if not type_.startswith("sentence_transformers."):
            raise InputError(
                f"{folder / MODULES} names {type_}, code of the model's own that only sentence-transformers could run; "
                "use a model without it"
            )
    kinds = [type_.rsplit(".", 1)[-1] for type_, _ in modules]
    if other := next((kind for kind in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize")), None):
        raise InputError(
            f"{folder / MODULES} names a {other} module; expected Transformer, Pooling, Dense and Normalize only. "
            "Use a model without it, or fold it into the weights"
        )
    if kinds and not re.fullmatch("Transformer Pooling( Dense)*( Normalize)?", " ".join(kinds)):
        raise InputError(
            f"{folder / MODULES} lists {', '.join(kinds)}; expected Transformer, Pooling, any number of Dense, and at "
            "most one Normalize at the end (rows are normalised in any case)"
        )
    if modules:
        pooling, pool_prompt = _pooling(folder / modules[1][1] / "config.json")
        length = _max_length(folder / modules[0][1]) or conventions.max_length
        conventions = replace(conventions, pooling=pooling, pool_prompt=pool_prompt, max_length=length)
    settings = _read_json(folder / SETTINGS) or {}
    similarity = settings.get("similarity_fn_name") or "cosine"
    # With rows of unit length, inner product and Euclidean distance rank as the cosine does.
    if similarity == "manhattan" or (similarity != "cosine" and kinds and "Normalize" not in kinds):
        logger.warning(
            "%s was trained for the similarity %r of vectors as they come; here rows have unit length and are compared "
            "by their cosine, so rankings differ somewhat. Measure it: searchkit evaluate",
            folder, similarity,
        )  # fmt: skip
    prompts = settings.get("prompts") or {}
    conventions = _with_prompts(conventions, prompts, settings.get("default_prompt_name"))
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


def _pooling(file: Path) -> tuple[str, bool]:
    """The kind of pooling, and whether the prompt takes part in it."""
    config = _read_json(file) or {}
    modes = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    if config.get("pooling_mode"):
        named = config["pooling_mode"]
        modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in _SENTENCE_TRANSFORMERS_POOLING:
        known = ", ".join(sorted(_SENTENCE_TRANSFORMERS_POOLING))
        raise InputError(f"{file} asks for pooling {modes or 'of no kind'}; expected exactly one of {known}")
    pooling, pool_prompt = _SENTENCE_TRANSFORMERS_POOLING[modes[0]], config.get("include_prompt") is not False
    if pooling == "weighted-mean" and not pool_prompt:
        raise InputError(f"{file} leaves the prompt out of a weighted mean, which is not supported; use another model")
    return pooling, pool_prompt


def dense_folders(folder: Path) -> list[Path]:
    """The folders of a model's Dense modules, in their order."""
    modules = _read_json(folder / MODULES) or []
    return [folder / module["path"] for module in modules if module["type"].rsplit(".", 1)[-1] == "Dense"]


_QUERY_PROMPTS = ("query", "search_query", "retrieval.query", "Retrieval-query", "s2p_query")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus", "search_document", "retrieval.passage", "Retrieval-document")
"""Names that models give their prompts for searching; those of sentence-transformers first."""


def _with_prompts(conventions: Conventions, prompts: dict[str, str], default: str | None) -> Conventions:
    """Conventions with the prompts of a folder; `default` names the one that texts get for which none is named."""
    fallback = prompts.get(default, "") if default else ""
    query = next((prompts[name] for name in _QUERY_PROMPTS if prompts.get(name)), fallback)
    instructed = re.fullmatch(r"(?P<before>.*?Instruct: )(?P<instruction>.+?)(?P<after>\n.*)", query, re.DOTALL)
    if instructed:  # the prompt is a template with an instruction filled in
        conventions = replace(
            conventions,
            instructed=instructed["before"] + "{instruction}" + instructed["after"] + "{query}",
            default_instruction=instructed["instruction"],
        )
    elif query:
        conventions = replace(conventions, query_prefix=query, default_instruction=None)
    if re.fullmatch(r"task: .+ \| query: ", query):  # EmbeddingGemma's
        conventions = replace(conventions, instructed="task: {instruction} | query: {query}")
    document = next((prompts[name] for name in _DOCUMENT_PROMPTS if name in prompts), fallback)
    return replace(conventions, document_prefix=document) if document else conventions


_SAMPLED_BYTES = 256 << 20


def fingerprint(folder: Path) -> str:
    """SHA-256, as hex, of what decides a model's vectors: weights, tokenizer and config files, not their path.

    A shift of queries by their instruction is not part of it: passages, which indexes hold, are the same without.

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
    for dense in dense_folders(folder):
        digest.update(f"{dense.name}\0{fingerprint(dense)}".encode())
    return digest.hexdigest()


def code_fingerprint(folder: Path) -> str:
    """SHA-256, as hex, of the Python code that a model brings."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _model_files(folder: Path) -> Iterator[Path]:
    names = {
        "config.json", "tokenizer.json", "adapter_config.json", "base_config.json", "vocab.txt", "tokenizer.model",
    }  # fmt: skip
    weights = [
        file for file in folder.iterdir() if file.suffix in (".safetensors", ".onnx") and file.name != SHIFT_FILE
    ]
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
