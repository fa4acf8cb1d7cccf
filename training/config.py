"""Everything that decides a training run, in one record that is saved beside what it made."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.training.batches import Source

_LEAST = {
    "epochs": 1, "batch_size": 2, "chunk": 1, "warmup_steps": 0, "weight_decay": 0, "negatives_per_query": 0,
    "contrast": 0, "teacher_weight": 0, "teacher_neighbours": 0, "lora_rank": 0, "seed": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A training run; the defaults are the paper's (arXiv 2401.00368), but for the batch, which is one machine's.

    Args:
        sources: Files of examples, each as FILE or FILE@SETTINGS such as 0.5,mixed,kept: a ratio; mixed lets examples
            with different instructions share a batch, for synthetic data; kept texts have no contrast and are only
            held where the teacher has them, instructed queries where it has them without (unless `teacher_follows`).
        corpus: What the ids of examples name documents of: anything `read_corpus` reads, or an index; None where
            examples hold their texts.
        base: The model to begin with: a folder, a hub id or a packaged name.
        out: Folder to write.
        epochs: Times through the sources.
        max_steps: Stop after so many batches even within an epoch; None does not.
        batch_size: Queries a step; every one meets all passages of the step.
        chunk: Texts embedded at once; a batch of more goes through GradCache.
        learning_rate: Highest, reached after `warmup_steps`, then falling linearly to 0.
        warmup_steps: At most a tenth of all steps.
        weight_decay: Of AdamW.
        temperature: Divides the cosines of the contrastive loss.
        margin: Leaves out negatives that score above the positive by more than this; None keeps all.
        negatives_per_query: Hard negatives drawn for every query.
        matryoshka: Leading widths trained besides the full one.
        contrast: Weight of the contrastive loss; 0 leaves it out.
        teacher: A model whose vectors the student is drawn to, or None.
        teacher_weight: Of the cosine to the teacher.
        teacher_neighbours: Of the teacher's similarities between the texts of a batch; always 1 for kept sources.
        teacher_follows: The teacher was trained for instructions, so its vectors of instructed queries are taught as
            they are.
        instructions: JSON file {source name: [instructions]} for examples without their own, or None. A source's name
            is its file's, without .jsonl and .gz; each example keeps one of the list.
        instructed: Share of queries that get their instruction; below 1 the model also learns to do without.
        lora_rank: Of the adapters on all linear layers; 0 trains every weight but the token embeddings.
        lora_alpha: Scales the adapters; None is twice the rank.
        pooling: Instead of the base's own.
        append_eos: End every query and passage with EOS. None does so for a decoder that pools at the last token, as in
            the paper, and otherwise keeps the base's own way; False leaves it to the tokenizer.
        attention: "causal" makes a decoder of an encoder, "bidirectional" lets the tokens of a decoder see the whole
            text (within its sliding window, to both sides); None keeps the base's own. Pooling stays as it is.
        query_repeats: How often a query is written after its instruction, instead of as often as with the base: read
            again, each token has all of the query before it, which causal attention denies to the first reading.
        max_length: Tokens of a query with its instruction, and of a passage.
        precision: "auto" (bfloat16 where the hardware is fast at it), "float32" or "bfloat16".
        gradient_checkpointing: Recompute activations instead of keeping them.
        checkpoint_every: Steps between checkpoints to resume from; 0 writes none.
        evaluate_every: Steps between evaluations on `dev`; 0 evaluates at the end alone.
        dev: BEIR folder to evaluate on, with the split as FOLDER:SPLIT; None does not evaluate.
        seed: Of everything drawn.
    """

    sources: tuple[str, ...]
    base: str
    out: str
    corpus: str | None = None
    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 64
    chunk: int = 32
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    temperature: float = 0.02
    margin: float | None = None
    negatives_per_query: int = 1
    matryoshka: tuple[int, ...] = ()
    contrast: float = 1.0
    teacher: str | None = None
    teacher_weight: float = 5.0
    teacher_neighbours: float = 1.0
    teacher_follows: bool = False
    instructions: str | None = None
    instructed: float = 1.0
    lora_rank: int = 16
    lora_alpha: int | None = None
    pooling: str | None = None
    append_eos: bool | None = None
    attention: str | None = None
    query_repeats: int | None = None
    max_length: int = 512
    precision: str = "auto"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 500
    evaluate_every: int = 0
    dev: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("no sources: give at least one file of examples")
        for name, least in _LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        for name in ("temperature", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.query_repeats is not None and self.query_repeats < 1:
            raise InputError(f"query_repeats is {self.query_repeats}; it must be 1 or more")
        if not all(width >= 1 for width in self.matryoshka):
            raise InputError(f"matryoshka is {self.matryoshka}; widths must be 1 or more")
        if self.contrast == 0 and self.teacher is None:
            raise InputError("the contrastive loss is off and there is no teacher, so there is nothing to learn from")
        if self.teacher is None and any(Source.parse(source).kept for source in self.sources):
            raise InputError("a source is to be kept as the teacher has it, and there is no teacher; name one")
        if not 0 <= self.instructed <= 1:
            raise InputError(f"instructed is {self.instructed}; it is a share, 0 to 1")
        if self.attention not in (None, "causal", "bidirectional"):
            raise InputError(f"attention is {self.attention!r}; expected causal, bidirectional or None")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise InputError(f"precision is {self.precision!r}; expected auto, float32 or bfloat16")

    def save(self, file: Path) -> None:
        """Write the record as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> TrainConfig:
        """Read what `save` wrote; ValueError when it was written by a version with other settings, and uses them."""
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        unknown = {name: values.pop(name) for name in values.keys() - {field.name for field in fields(cls)}}
        if used := sorted(name for name, value in unknown.items() if value):
            raise InputError(
                f"{file} has settings that this version does not know ({', '.join(used)}); name another --out"
            )
        values["sources"], values["matryoshka"] = tuple(values["sources"]), tuple(values["matryoshka"])
        return cls(**values)
