"""The settings of a training run, in one record that is saved with the result."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.training.batches import Source
from searchkit.training.checking import check_types
from searchkit.training.files import read_json, write_json

_LEAST = {
    "epochs": 1, "batch_size": 2, "chunk": 1, "warmup_steps": 0, "weight_decay": 0, "negatives_per_query": 0,
    "contrast": 0, "teacher_weight": 0, "teacher_neighbours": 0, "lora_rank": 0, "seed": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A training run; the defaults are the paper's (arXiv 2401.00368), except for a batch that fits one machine.

    Args:
        sources: Files of examples, each as FILE or FILE@SETTINGS such as 0.5,mixed,kept: a ratio; mixed lets examples
            with different instructions share a batch, for synthetic data; kept texts have no contrast and are only
            held where the teacher has them, instructed queries where it has them without (unless `teacher_follows`).
        corpus: Where the ids of examples are looked up: anything `read_corpus` reads, or an index; None if the examples
            hold their texts.
        base: The model to start from: a folder, a hub id or a packaged name.
        out: Folder to write.
        epochs: Passes over the sources.
        max_steps: Stop after this many steps, even within an epoch; None does not.
        batch_size: Queries per step; each is compared with all passages of the step.
        chunk: Texts embedded at once; larger batches go through GradCache.
        learning_rate: Peak learning rate, reached after `warmup_steps`, then falling linearly to 0.
        warmup_steps: At most a tenth of all steps.
        weight_decay: AdamW weight decay.
        temperature: Softmax temperature of the contrastive loss.
        margin: Excludes negatives that score above the positive by more than this; None keeps all.
        negatives_per_query: Hard negatives per query.
        matryoshka: Leading widths trained besides the full one.
        contrast: Weight of the contrastive loss; 0 omits it.
        teacher: A model whose vectors the student learns, several, or None. Of several it learns the sum of their
            similarities, each standardised, and a projection of their joined vectors, and examples without contrast
            come in batches of near neighbours; see :mod:`searchkit.training.ensemble`.
        teacher_vectors: Folder that keeps the teachers' vectors, so that every text is embedded once by all runs that
            name it; None keeps what fits in memory.
        teacher_weight: Weight of the cosine to the teacher.
        teacher_neighbours: Weight of the teacher's similarities between the texts of a batch; 1 for kept sources.
        teacher_follows: The teacher was trained with instructions, so its vectors of instructed queries are taught as
            they are.
        instructions: JSON file {source name: [instructions]} for examples without their own, or None. The name of a
            source is its file's without .jsonl and .gz; each example keeps the same one of the list.
        instructed: Share of queries that get their instruction; below 1 the model also learns to do without.
        lora_rank: Rank of the adapters on all linear layers; 0 trains every weight but the token embeddings.
        lora_alpha: Scale of the adapters; None is twice the rank.
        pooling: Replaces the base's own.
        append_eos: End every query and passage with EOS. None does so for a decoder that pools at the last token, as in
            the paper, and otherwise follows the base; False leaves it to the tokenizer.
        attention: "causal" makes an encoder a decoder, "bidirectional" lets the tokens of a decoder see the whole text
            (within its sliding window, to both sides); None keeps the base's own. Pooling is not affected.
        query_repeats: How often a query is repeated after its instruction; None follows the base. In a repetition, each
            token sees the whole query, which causal attention hides from the first.
        max_length: Tokens of a query with its instruction, and of a passage.
        precision: "auto" (bfloat16 where the hardware is fast at it), "float32" or "bfloat16".
        gradient_checkpointing: Recompute activations instead of storing them.
        checkpoint_every: Steps between checkpoints to resume from; 0 writes none.
        evaluate_every: Steps between evaluations on `dev`; 0 evaluates only at the end.
        dev: BEIR folder to evaluate on, with the split as FOLDER:SPLIT; None does not evaluate.
        seed: Random seed.
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
    teacher: str | tuple[str, ...] | None = None
    teacher_vectors: str | None = None
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
        check_types(self)
        if not self.sources:
            raise InputError("no sources; give at least one file of examples")
        for name, least in _LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected {least} or more")
        for name in ("temperature", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number above 0")
        if self.query_repeats is not None and self.query_repeats < 1:
            raise InputError(f"query_repeats is {self.query_repeats}; expected 1 or more")
        if not all(width >= 1 for width in self.matryoshka):
            raise InputError(f"matryoshka is {self.matryoshka}; expected widths of 1 or more")
        if self.contrast == 0 and not self.teachers:
            raise InputError("contrast is 0 and there is no teacher, so there is nothing to learn from")
        if not self.teachers and any(Source.parse(source).kept for source in self.sources):
            raise InputError("a source is marked as kept, but there is no teacher to keep it close to; name one")
        if len(set(self.teachers)) < len(self.teachers):
            raise InputError(f"teacher is {self.teachers}, which names one twice; name each once")
        if self.teacher_vectors is not None and not self.teachers:
            raise InputError("teacher_vectors is given, but there is no teacher to keep vectors of; name one")
        if not 0 <= self.instructed <= 1:
            raise InputError(f"instructed is {self.instructed}; expected a share from 0 to 1")
        if self.attention not in (None, "causal", "bidirectional"):
            raise InputError(f"attention is {self.attention!r}; expected causal, bidirectional or None")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise InputError(f"precision is {self.precision!r}; expected auto, float32 or bfloat16")

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers' names; none, one or several."""
        if self.teacher is None or isinstance(self.teacher, str):
            return (self.teacher,) if self.teacher else ()
        return self.teacher

    def save(self, file: Path) -> None:
        """Write the record as JSON."""
        write_json(file, asdict(self))

    @classmethod
    def load(cls, file: Path) -> TrainConfig:
        """Read what `save` wrote.

        Raises:
            InputError: It is something else, or by a version with other settings, and uses them.
        """
        saved = read_json(file)
        if not isinstance(saved, dict) or not {"sources", "base", "out"} <= saved.keys():
            raise InputError(f"{file} does not hold the settings of a training run; choose another --out")
        known = {field.name for field in fields(cls)}
        if used := sorted(name for name, value in saved.items() if value and name not in known):
            raise InputError(
                f"{file} has settings that this version does not know ({', '.join(used)}); choose another --out"
            )
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in saved.items() if name in known
        }
        return cls(**values)
