"""The embedder and whole indexes as models that mteb scores: its EncoderProtocol and its SearchProtocol."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.compression import measure as compress
from searchkit.engine import COMMIT_EVERY, SearchEngine
from searchkit.errors import InputError
from searchkit.evaluation.evaluate import mode_bytes
from searchkit.metrics import DEPTH
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.ranking import SearchOptions
from searchkit.records import Document, Query
from searchkit.tasks import find_task

logger = logging.getLogger(__name__)

_MODEL_TYPES = {"dense": "dense", "lexical": "sparse", "hybrid": "hybrid"}


def instruction_of(task_metadata: Any, prompt_type: Any = None) -> str | None:
    """The sentence that goes before the texts of a task: the paper's where it has one, else mteb's own.

    Args:
        task_metadata: An mteb TaskMetadata.
        prompt_type: Which side, an mteb PromptType; None where a task has no sides.

    Returns:
        The sentence; None for a search that nobody wrote one for, where a model has its own.
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

    Queries of models that were trained with instructions get the task's; so do the texts of tasks without sides (STS,
    classification, clustering, bitext), as in the paper. Documents never do. They are embedded in the batches of an
    index, so that a document's vector is, to the last bit, the one that an index holds.

    Args:
        embedder: What embeds, or the name of a model.
        instruction: For every task in the place of its own; "" is none.
    """

    def __init__(self, embedder: Embedder | str | Path = DEFAULT_MODEL, *, instruction: str | None = None) -> None:
        self.embedder = embedder if isinstance(embedder, Embedder) else Embedder(embedder)
        self.instruction = instruction
        self.mteb_model_meta = _model_meta(self.embedder, "dense", _asked(instruction))

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
            prompt_type: PromptType.query, PromptType.document, or None where a task has no sides.
            kwargs: mteb's own, such as batch_size; not used.

        Returns:
            (texts, dim) float32 rows of unit length; of zeros for blank documents.
        """
        embed = self._document if prompt_type == "document" else self._asker(task_metadata, prompt_type)
        texts = [text for batch in inputs for text in batch["text"]]
        rows = np.zeros((len(texts), self.embedder.dim), np.float32)
        # A blank document says nothing: it is in no batch, as in an index, and like nothing.
        wanted = [n for n, text in enumerate(texts) if text.strip() or prompt_type != "document"]
        for start in range(0, len(wanted), COMMIT_EVERY):
            window = wanted[start : start + COMMIT_EVERY]
            rows[window] = embed([texts[n] for n in window])
        return rows

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Every cosine, (n, m) float32, of unit rows (n, dim) and (m, dim); to rows of zeros -1, behind all others."""
        first, second = np.atleast_2d(embeddings1), np.atleast_2d(embeddings2)
        scores = np.asarray(first @ second.T)
        scores[:, ~second.any(axis=1)] = -1
        return scores

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """The cosine of each pair, (n,) float32, of unit rows (n, dim) and (n, dim)."""
        return np.asarray(np.einsum("nd,nd->n", np.atleast_2d(embeddings1), np.atleast_2d(embeddings2)))

    def _document(self, texts: list[str]) -> np.ndarray:
        return self.embedder.encode_passages(texts)

    def _asker(self, task_metadata: Any, prompt_type: Any) -> Callable[[list[str]], np.ndarray]:
        instruction = _instruction(self.embedder, self.instruction, task_metadata, prompt_type)
        encode = self.embedder.encode_symmetric if prompt_type is None else self.embedder.encode_queries
        return lambda texts: encode(texts, instruction)


class MtebSearch:
    """Indexes as mteb's SearchProtocol: what is scored is what a search of them returns.

    Each corpus becomes an index in a folder, whole documents as published figures have them; one that is there already
    is used, and completed. The first 100 documents of a ranking are those of a search for 100, however many mteb wants:
    a deeper search joins longer lists and re-ranks more candidates, and would score an index better than it is used.
    What it finds beyond comes after them.

    Args:
        embedder: What embeds, or the name of a model.
        indexes: Folder for an index a corpus.
        options: How to search; hybrid by default.
        recipe: How vectors are stored, as `searchkit compress` names it.
        instruction: For every task in the place of its own; "" is none.
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
        compress.parse(recipe, self.embedder.dim, 1)  # a wrong recipe is said before anything is embedded
        settings = {"mode": self.options.mode, "recipe": recipe, **_asked(instruction), **_fusion(self.options)}
        self.mteb_model_meta = _model_meta(self.embedder, _MODEL_TYPES[self.options.mode], settings)
        self.costs: dict[str, tuple[float, float]] = {}
        """Seconds a query and bytes a document of every corpus that was searched, by the name of its index."""
        self._engine: SearchEngine | None = None

    def index(
        self, corpus: Iterable[Mapping[str, Any]], *, task_metadata: Any, hf_split: str, hf_subset: str, **kwargs: Any
    ) -> None:
        """Make the index of a corpus, or open and complete the one that is there; blank documents are left out.

        Args:
            corpus: Rows with "id", "text" and maybe "title".
            task_metadata: Its name is the index's.
            hf_split: Goes into that name too.
            hf_subset: Likewise, if there are several.
            kwargs: mteb's own, such as encode_kwargs; not used.

        Raises:
            ValueError: The index there is of another model or another corpus, or the recipe does not fit.
        """
        self.close()
        folder = self.indexes / index_name(task_metadata.name, hf_subset, hf_split)
        folder.parent.mkdir(parents=True, exist_ok=True)
        engine = SearchEngine.create(folder, model=self.embedder, chunk_tokens=0, exist_ok=True)
        self._engine = engine
        refused: list[str] = []
        report = engine.add(_documents(corpus), update=True, on_refused=lambda _, reason: refused.append(reason))
        if refused:
            logger.warning("%s: %d documents are left out: %s", folder.name, len(refused), refused[0])
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
        """Search the index that was made last, then close it.

        Args:
            queries: A datasets.Dataset with "id" and "text", as mteb has them.
            task_metadata: Decides the instruction.
            hf_split: As at `index`.
            hf_subset: As at `index`.
            top_k: Documents a query.
            encode_kwargs: mteb's own; not used.
            top_ranked: Documents a query, by id, that alone are ranked; None ranks all.
            kwargs: mteb's own; not used.

        Returns:
            {query id: {document id: score}}; a query that finds nothing has none, which mteb counts as zero.
        """
        if self._engine is None:
            raise InputError("there is no index to search; call index() first")
        asked = _queries(queries, task_metadata)
        sentence = _instruction(self.embedder, self.instruction, task_metadata, None)
        known = find_task(task_metadata.name)
        depth = min(top_k, DEPTH + bool(known and known.drop_self))  # a query's own document is dropped by mteb
        if top_ranked is not None:
            depth = top_k
        if self.options.mode != "lexical":
            self.embedder.encode_queries(["warm up"])  # loading the model is not searching
        began = time.perf_counter()
        run = self._ranked(asked, sentence, depth, top_ranked)
        seconds = (time.perf_counter() - began) / max(1, len(asked))
        if top_k > depth and len(self._engine) > depth:
            further = self._ranked(asked, sentence, top_k, top_ranked)
            run = {query: _continued(found, further[query]) for query, found in run.items()}
        name = index_name(task_metadata.name, hf_subset, hf_split)
        self.costs[name] = seconds, mode_bytes(self._engine)[self.options.mode]
        self.close()
        # A blank query finds nothing; mteb takes the mean over the queries that are named here.
        return {str(query): run.get(str(query), {}) for query in queries["id"]}

    def close(self) -> None:
        """Close the index that is open, if one is."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _ranked(
        self, asked: list[Query], instruction: str | None, k: int, top_ranked: Mapping[str, Sequence[str]] | None
    ) -> dict[str, dict[str, float]]:
        assert self._engine is not None
        engine, how = self._engine, self.options
        if top_ranked is None:
            rankings = engine.rank(asked, instruction=instruction, k=k, options=how, ties=True)
        else:
            rankings = []
            for query in asked:
                among = replace(how, where={_ID: {"$in": list(top_ranked.get(query.id, ()))}})
                rankings += engine.rank([query], instruction=instruction, k=k, options=among)
        ids = engine.ids_of(rankings)
        # As 32-bit floats, since trec_eval compares them so: mteb's MRR would see other ties than its nDCG.
        return {
            query.id: {ids[item.doc]: float(np.float32(item.score)) for item in ranking}
            for query, ranking in zip(asked, rankings, strict=True)
        }


_ID = "id"  # of a document, in its metadata: a filter on it ranks some documents alone


def _documents(corpus: Iterable[Mapping[str, Any]]) -> Iterator[Document]:
    """The rows of a corpus that say something."""
    for row in corpus:
        id, title, text = str(row["id"]), row.get("title") or "", row["text"] or ""
        if title.strip() or text.strip():
            yield Document(id, text, title=title, metadata={_ID: id})


def _queries(queries: Any, task_metadata: Any) -> list[Query]:
    """The queries that say something, as mteb shows them to an encoder: with their own instruction, as one string."""
    from mteb._create_dataloaders import create_dataloader  # mteb's own searchers use it, there is nothing public
    from mteb.types import PromptType

    loader = create_dataloader(queries, task_metadata=task_metadata, prompt_type=PromptType.query)
    texts = [text for batch in loader for text in batch["text"]]
    pairs = zip(queries["id"], texts, strict=True)
    return [Query(str(id), text) for id, text in pairs if text.strip()]


def _continued(first: dict[str, float], deeper: dict[str, float]) -> dict[str, float]:
    """A ranking with the documents below it that only a deeper search has found, in that one's order."""
    run = dict(first)
    last = np.float32(min(first.values(), default=np.inf))
    ceiling = np.nextafter(last, np.float32(-np.inf))
    for document, score in sorted(deeper.items(), key=lambda item: -item[1]):
        if document not in first:
            ceiling = min(ceiling, np.float32(score))
            run[document] = float(ceiling)
    return run


def _store_by(engine: SearchEngine, recipe: str) -> None:
    """Store the vectors by a recipe, where they are not yet."""
    storage = engine.storage
    wanted, rerank = compress.parse(recipe, engine.dim, engine.passages)
    if (storage.plan.spelling, storage.tuning.rerank > 0) != (wanted.spelling, rerank):
        compress.apply(engine, recipe)


def _instruction(embedder: Embedder, asked: str | None, task_metadata: Any, prompt_type: Any) -> str | None:
    """What goes before a query: what was asked for, else the task's where the model was trained with instructions."""
    if asked is not None:
        return asked
    instructed = embedder.conventions.default_instruction is not None
    return instruction_of(task_metadata, prompt_type) if instructed else ""


def index_name(task: str, subset: str, split: str) -> str:
    parts = [task, *([] if subset == "default" else [subset]), split]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts)) + ".index"


def _asked(instruction: str | None) -> dict[str, str]:
    return {} if instruction is None else {"instruction": instruction}


def _fusion(options: SearchOptions) -> dict[str, Any]:
    """The settings of hybrid search that are not the usual ones."""
    usual = SearchOptions()
    names = ("fusion", "dense_weight", "rrf_k", "depth") if options.mode == "hybrid" else ()
    return {name: getattr(options, name) for name in names if getattr(options, name) != getattr(usual, name)}


def _model_meta(embedder: Embedder, kind: str, settings: dict[str, Any]) -> Any:
    """What mteb writes beside results: whose they are, under a revision that equal weights and conventions share."""
    from mteb.models import ModelMeta

    identity = embedder.identity()
    bound = {key: value for key, value in identity.items() if key not in ("model", "adapter")}
    revision = hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()[:40]
    name = (
        identity["model"]
        if re.fullmatch(r"[\w.-]+/[\w.-]+", identity["model"])
        else f"searchkit/{Path(embedder.name).name}"
    )
    return ModelMeta(
        loader=None,
        name=name if embedder.adapter is None else f"{name}+{Path(embedder.adapter).name}",
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
        framework=["ONNX" if (embedder.folder / MODEL_FILE).is_file() else "PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=embedder.conventions.default_instruction is not None,
        training_datasets=None,
        model_type=[kind],
        experiment_kwargs=settings or None,
    )
