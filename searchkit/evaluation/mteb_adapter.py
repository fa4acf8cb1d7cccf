"""Embedders and indexes as models that mteb can score: its EncoderProtocol and its SearchProtocol."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.compression import measure as compress
from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.evaluation.evaluate import mode_bytes
from searchkit.ingest import window_size
from searchkit.metrics import DEPTH
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.ranking import SearchOptions
from searchkit.records import Document, Query
from searchkit.tasks import find_task

logger = logging.getLogger(__name__)

_MODEL_TYPES = {"dense": "dense", "lexical": "sparse", "hybrid": "hybrid"}


def instruction_of(task_metadata: Any, prompt_type: Any = None) -> str | None:
    """The instruction of a task: the paper's if it has one, else mteb's own.

    Args:
        task_metadata: An mteb TaskMetadata.
        prompt_type: The side, an mteb PromptType; None if the task has no sides.

    Returns:
        The instruction; None for a retrieval task without one, which leaves it to the model's default.
    """
    from mteb.abstasks.abstask import get_abstask_prompt

    if known := find_task(task_metadata.name):
        return known.instruction
    prompt = task_metadata.prompt
    if isinstance(prompt, dict):
        prompt = prompt.get(prompt_type.value if prompt_type else "query")
    if not prompt and task_metadata.simplified_task_type != "retrieval":
        prompt = get_abstask_prompt(task_metadata.name)
    return prompt or None


class MtebEncoder:
    """An embedder as mteb's EncoderProtocol.

    With models trained with instructions, queries get the task's instruction, and so do the texts of tasks without
    sides (STS, classification, clustering, bitext), as in the paper. Documents never do. They are embedded in the
    batches of an index, so that their vectors equal those of an index to the last bit.

    Args:
        embedder: The model, or its name.
        instruction: Instruction of every task instead of its own; "" is none.
    """

    def __init__(self, embedder: Embedder | str | Path = DEFAULT_MODEL, *, instruction: str | None = None) -> None:
        self.embedder = embedder if isinstance(embedder, Embedder) else Embedder(embedder)
        self.instruction = instruction
        self.mteb_model_meta = _model_meta(self.embedder, "dense", _given(instruction))

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embed the texts of a DataLoader, in its order.

        Args:
            inputs: Batches with a list of strings under "text".
            task_metadata: Decides the instruction.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: PromptType.query, PromptType.document, or None if the task has no sides.
            kwargs: Other arguments of mteb, such as batch_size; not used.

        Returns:
            (texts, dim) float32 unit rows; zeros for blank documents.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        rows = np.zeros((len(texts), self.embedder.dim), np.float32)
        # A blank document is in no batch, as in an index, and similar to nothing.
        kept = [n for n, text in enumerate(texts) if text.strip() or prompt_type != "document"]
        size = window_size(self.embedder)
        for start in range(0, len(kept), size):
            window = kept[start : start + size]
            rows[window] = self._embed([texts[n] for n in window], task_metadata, prompt_type)
        return rows

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """All cosines, (n, m) float32, of unit rows (n, dim) and (m, dim); -1, below all others, to rows of zeros."""
        first, second = np.atleast_2d(embeddings1), np.atleast_2d(embeddings2)
        scores = np.asarray(first @ second.T)
        scores[:, ~second.any(axis=1)] = -1
        return scores

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """The cosine of each pair, (n,) float32, of unit rows (n, dim) and (n, dim)."""
        return np.asarray(np.einsum("nd,nd->n", np.atleast_2d(embeddings1), np.atleast_2d(embeddings2)))

    def _embed(self, texts: list[str], task_metadata: Any, prompt_type: Any) -> np.ndarray:
        if prompt_type == "document":
            return self.embedder.encode_passages(texts)
        instruction = _instruction(self.embedder, self.instruction, task_metadata, prompt_type)
        if prompt_type is None:
            return self.embedder.encode_symmetric(texts, instruction)
        return self.embedder.encode_queries(texts, instruction)


class MtebSearch:
    """Indexes as mteb's SearchProtocol, scored by what a search of them returns.

    Each corpus becomes an index in a folder, with whole documents, as for published figures; an existing index is used
    and completed. The first 100 documents of a ranking are those of a search for 100, however many mteb wants: a
    deeper search fuses longer lists and re-ranks more candidates, and would score an index better than users see it.
    Further documents of a deeper search come after them.

    Args:
        embedder: The model, or its name.
        indexes: Folder of the indexes, one for each corpus.
        options: How to search; hybrid by default.
        recipe: How vectors are stored, as `searchkit compress` names it.
        instruction: Instruction of every task instead of its own; "" is none.
    """

    def __init__(
        self,
        embedder: Embedder | str | Path = DEFAULT_MODEL,
        *,
        indexes: str | Path,
        options: SearchOptions | None = None,
        recipe: str = "flat",
        instruction: str | None = None,
    ) -> None:
        self.embedder = embedder if isinstance(embedder, Embedder) else Embedder(embedder)
        self.options = options or SearchOptions()
        self.indexes, self.recipe, self.instruction = Path(indexes), recipe, instruction
        compress.parse(recipe, self.embedder.dim, 1)  # a wrong recipe is reported before anything is embedded
        settings = {"mode": self.options.mode, "recipe": recipe, **_given(instruction), **_fusion(self.options)}
        self.mteb_model_meta = _model_meta(self.embedder, _MODEL_TYPES[self.options.mode], settings)
        self.costs: dict[str, tuple[float, float]] = {}
        """Seconds per query and bytes per document of every corpus that was searched, by the name of its index."""
        self._engine: SearchEngine | None = None

    def index(
        self, corpus: Iterable[Mapping[str, Any]], *, task_metadata: Any, hf_split: str, hf_subset: str, **kwargs: Any
    ) -> None:
        """Build the index of a corpus, or open and complete an existing one; blank documents are skipped.

        Args:
            corpus: Rows with "id", "text" and optionally "title".
            task_metadata: Its name is part of the index's name.
            hf_split: Likewise.
            hf_subset: Likewise, unless it is "default".
            kwargs: Other arguments of mteb, such as encode_kwargs; not used.

        Raises:
            StoreError: The existing index belongs to another model.
            InputError: It holds another corpus, or the recipe does not fit.
        """
        self.close()
        folder = self.indexes / index_name(task_metadata.name, hf_subset, hf_split)
        folder.parent.mkdir(parents=True, exist_ok=True)
        engine = SearchEngine.create(folder, model=self.embedder, chunk_tokens=0, exist_ok=True)
        self._engine = engine
        refused: list[str] = []
        report = engine.add(_documents(corpus), update=True, on_refused=lambda _, reason: refused.append(reason))
        if refused:
            logger.warning("%s: %d documents were left out: %s", folder.name, len(refused), refused[0])
        if len(engine) != report.documents + report.unchanged:
            raise InputError(
                f"{folder} holds {len(engine)} documents, and the corpus has {report.documents + report.unchanged}: "
                "they are of different collections; remove the index, or name another folder"
            )
        _store_by(engine, self.recipe)

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Mapping[str, Any] | None = None,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> dict[str, dict[str, float]]:
        """Search the index that was built last, then close it.

        Args:
            queries: A datasets.Dataset with "id" and "text", as mteb has them.
            task_metadata: Decides the instruction.
            hf_split: As for `index`.
            hf_subset: As for `index`.
            top_k: Documents per query.
            encode_kwargs: Arguments of mteb; not used.
            top_ranked: Ids of the only documents to rank for each query; None ranks all.
            kwargs: Other arguments of mteb; not used.

        Returns:
            {query id: {document id: score}}; empty for a query without hits, which mteb counts as zero.
        """
        if self._engine is None:
            raise InputError("there is no index to search; call index() first")
        searched = _queries(queries, task_metadata)
        instruction = _instruction(self.embedder, self.instruction, task_metadata, None)
        known = find_task(task_metadata.name)
        depth = min(top_k, DEPTH + bool(known and known.drop_self))  # mteb drops a query's own document
        if top_ranked is not None:
            depth = top_k
        if self.options.mode != "lexical":
            self.embedder.encode_queries(["warm up"])  # loading the model must not count as search time
        began = time.perf_counter()
        run = self._ranked(searched, instruction, depth, top_ranked)
        seconds = (time.perf_counter() - began) / max(1, len(searched))
        if top_k > depth and len(self._engine) > depth:
            deeper = self._ranked(searched, instruction, top_k, top_ranked)
            run = {query: _continued(ranking, deeper[query]) for query, ranking in run.items()}
        name = index_name(task_metadata.name, hf_subset, hf_split)
        self.costs[name] = seconds, mode_bytes(self._engine)[self.options.mode]
        self.close()
        # Blank queries were not searched, but mteb takes the mean over the queries that are returned.
        return {str(query): run.get(str(query), {}) for query in queries["id"]}

    def close(self) -> None:
        """Close the open index, if there is one."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _ranked(
        self, queries: list[Query], instruction: str | None, k: int, top_ranked: Mapping[str, Sequence[str]] | None
    ) -> dict[str, dict[str, float]]:
        assert self._engine is not None
        engine, options = self._engine, self.options
        if top_ranked is None:
            rankings = engine.rank(queries, instruction=instruction, k=k, options=options, ties=True)
        else:
            rankings = []
            for query in queries:
                among = replace(options, where={_ID: {"$in": list(top_ranked.get(query.id, ()))}})
                rankings += engine.rank([query], instruction=instruction, k=k, options=among)
        ids = engine.ids_of(rankings)
        # As 32-bit floats, as trec_eval compares them: otherwise mteb's MRR would see other ties than its nDCG.
        return {
            query.id: {ids[item.doc]: float(np.float32(item.score)) for item in ranking}
            for query, ranking in zip(queries, rankings, strict=True)
        }


_ID = "id"  # metadata key of a document's id, by which a filter ranks only some documents


def _documents(corpus: Iterable[Mapping[str, Any]]) -> Iterator[Document]:
    """The rows of a corpus that are not blank."""
    for row in corpus:
        id, title, text = str(row["id"]), row.get("title") or "", row["text"] or ""
        if title.strip() or text.strip():
            yield Document(id, text, title=title, metadata={_ID: id})


def _queries(queries: Any, task_metadata: Any) -> list[Query]:
    """The queries that are not blank, as mteb passes them to an encoder: with their own instruction, as one string."""
    from mteb._create_dataloaders import create_dataloader  # mteb's searchers use it; there is no public one
    from mteb.types import PromptType

    loader = create_dataloader(queries, task_metadata=task_metadata, prompt_type=PromptType.query)
    texts = [text for batch in loader for text in batch["text"]]
    pairs = zip(queries["id"], texts, strict=True)
    return [Query(str(id), text) for id, text in pairs if text.strip()]


def _continued(first: dict[str, float], deeper: dict[str, float]) -> dict[str, float]:
    """A ranking, followed by the documents that only a deeper search returned, in the order of that search."""
    run = dict(first)
    last = np.float32(min(first.values(), default=np.inf))
    ceiling = np.nextafter(last, np.float32(-np.inf))
    for document, score in sorted(deeper.items(), key=lambda item: -item[1]):
        if document not in first:
            ceiling = min(ceiling, np.float32(score))
            run[document] = float(ceiling)
    return run


def _store_by(engine: SearchEngine, recipe: str) -> None:
    """Store the vectors by a recipe, unless they are already."""
    storage = engine.storage
    wanted, rerank = compress.parse(recipe, engine.dim, engine.passages)
    if (storage.plan.spelling, storage.tuning.rerank > 0) != (wanted.spelling, rerank):
        compress.apply(engine, recipe)


def _instruction(embedder: Embedder, requested: str | None, task_metadata: Any, prompt_type: Any) -> str | None:
    """The requested instruction, else the task's if the model was trained with instructions."""
    if requested is not None:
        return requested
    instructed = embedder.conventions.default_instruction is not None
    return instruction_of(task_metadata, prompt_type) if instructed else ""


def index_name(task: str, subset: str, split: str) -> str:
    """File name of the index of a task's corpus."""
    parts = [task, *([] if subset == "default" else [subset]), split]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts)) + ".index"


def _given(instruction: str | None) -> dict[str, str]:
    return {} if instruction is None else {"instruction": instruction}


def _fusion(options: SearchOptions) -> dict[str, Any]:
    """The settings of hybrid search that differ from the defaults."""
    default = SearchOptions()
    names = ("fusion", "dense_weight", "rrf_k", "depth") if options.mode == "hybrid" else ()
    return {name: getattr(options, name) for name in names if getattr(options, name) != getattr(default, name)}


def _model_meta(embedder: Embedder, kind: str, settings: dict[str, Any]) -> Any:
    """The model as mteb records it beside results; the revision depends on weights and conventions alone."""
    from mteb.models import ModelMeta

    identity = embedder.identity()
    bound = {key: value for key, value in identity.items() if key not in ("model", "adapter")}
    revision = hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()[:40]
    name = (
        identity["model"] if re.fullmatch(r"[\w.-]+/[\w.-]+", identity["model"]) else f"searchkit/{embedder.short_name}"
    )
    return ModelMeta(
        loader=None,
        name=name if embedder.adapter is None else f"{name}+{embedder.short_name}",
        revision=revision,
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=embedder.max_length,
        embed_dim=embedder.dim,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=[embedder.framework],
        similarity_fn_name="cosine",
        use_instructions=embedder.conventions.default_instruction is not None,
        training_datasets=None,
        model_type=[kind],
        experiment_kwargs=settings or None,
    )
