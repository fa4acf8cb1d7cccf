"""A reranker as a model that mteb can score: its CrossEncoderProtocol."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.evaluation.mteb_adapter import instruction_of
from searchkit.models.reranker import Reranker


class MtebReranker:
    """A reranker as mteb's CrossEncoderProtocol.

        mteb.evaluate(MtebReranker("Qwen/Qwen3-Reranker-0.6B"), tasks=mteb.get_tasks(["AskUbuntuDupQuestions"]))

    Models that read instructions get the task's.

    Args:
        reranker: The model, or its name.
    """

    def __init__(self, reranker: Reranker | str | Path) -> None:
        from mteb.models import ModelMeta

        self.reranker = reranker if isinstance(reranker, Reranker) else Reranker(reranker)
        name = self.reranker.name
        self.mteb_model_meta = ModelMeta(
            loader=None,
            name=name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else f"searchkit/{Path(name).name}",
            revision=None,
            release_date=None,
            languages=None,
            n_parameters=None,
            memory_usage_mb=None,
            max_tokens=self.reranker.max_length,
            embed_dim=None,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=None,
            use_instructions=self.reranker.follows_instructions,
            training_datasets=None,
            model_type=["cross-encoder"],
        )

    def predict(
        self,
        inputs1: Iterable[Mapping[str, Any]],
        inputs2: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Score pairs.

        Args:
            inputs1: Batches of queries, a list of strings under "text".
            inputs2: Batches of as many documents.
            task_metadata: Decides the instruction.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Not used.
            kwargs: Other arguments of mteb, such as batch_size; not used.

        Returns:
            (pairs,) float32, 0 to 1.
        """
        queries, documents = ([text for batch in side for text in batch["text"]] for side in (inputs1, inputs2))
        instruction = instruction_of(task_metadata) if self.reranker.follows_instructions else None
        return self.reranker.score_pairs(list(zip(queries, documents, strict=True)), instruction)
