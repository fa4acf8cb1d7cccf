"""Models that read a query and a document together, and score how well they fit.

Two kinds: cross-encoders of sentence-transformers (a classifier with one output), and decoders that are asked whether a
document meets the query and answer yes or no, as Qwen3-Reranker does. The second kind reads an instruction.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from searchkit.errors import InputError, MissingExtraError
from searchkit.models.location import find_model
from searchkit.models.runtime import load_errors
from searchkit.tasks import WEB_SEARCH
from searchkit.validation import check_optional_text, check_text, described, whole_number

logger = logging.getLogger(__name__)

# Qwen3-Reranker's form. Asked in another one, the model gives scores that mean nothing.
_ASKED = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_ANSWER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_LONGEST = 8192  # tokens of a pair, where the model itself sets no lower limit


class Reranker:
    """Scores pairs of query and document; higher is better, 0 to 1.

        Reranker("cross-encoder/ms-marco-MiniLM-L6-v2").rerank("vitamin d flu", ["Vitamin D ...", "Bread ..."])

    Threads may share one.

    Args:
        model: A folder or a hub id.
        device: "cpu", "cuda", "cuda:1", "mps", or None for the best available.
        dtype: "float32", "bfloat16" or "float16"; "auto" picks bfloat16 where the hardware is fast at it.
        max_length: Tokens of a pair; the end of the document is cut first. None for the model's own limit.

    Raises:
        InputError: There is no such model, or it is not a reranker.
        MissingExtraError: torch or transformers is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | None = None,
        dtype: str = "auto",
        max_length: int | None = None,
    ) -> None:
        folder, self.name = find_model(str(model))
        try:
            with load_errors(self.name):
                self._pairs = _load(folder, self.name, device, dtype, max_length)
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"running {self.name} needs {error.name}: pip install 'searchkit[torch]'", name=error.name
            ) from error
        self._lock = Lock()
        self._warned = False

    @property
    def follows_instructions(self) -> bool:
        """Whether an instruction is part of what it reads; cross-encoders have no place for one."""
        return self._pairs.template

    @property
    def max_length(self) -> int:
        """Most tokens of a pair."""
        return self._pairs.max_length

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of every token in a text, without special tokens."""
        encoded = self._pairs.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(start, stop) for start, stop in encoded["offset_mapping"]]

    def rerank(
        self, query: str, documents: Sequence[str], instruction: str | None = None, top_n: int | None = None
    ) -> list[tuple[int, float]]:
        """The documents, best first: the position of each among those given, and its score from 0 to 1.

        Args:
            query: What was searched for.
            documents: Their texts.
            instruction: One sentence that says what is relevant; models without a place for it ignore it.
            top_n: How many to return; None for all.

        Raises:
            InputError: An argument is of another type, or `top_n` is below 1.
        """
        scores = self.scores(query, documents, instruction)
        order = np.argsort(-scores, kind="stable")
        if top_n is not None:
            order = order[: whole_number("top_n", top_n, 1)]
        return [(int(index), float(scores[index])) for index in order]

    def scores(self, query: str, documents: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """The score of each document, (n,) float32 from 0 to 1."""
        check_text("query", query)
        if isinstance(documents, str) or not all(isinstance(text, str) for text in documents):
            raise InputError(f"documents is {described(documents)}; expected a list of strings")
        return self.score_pairs([(query, text) for text in documents], instruction)

    def score_pairs(self, pairs: Sequence[tuple[str, str]], instruction: str | None = None) -> np.ndarray:
        """The score of each (query, document), (n,) float32 from 0 to 1."""
        check_optional_text("instruction", instruction)
        if instruction and not self.follows_instructions and not self._warned:
            logger.warning("%s is a cross-encoder without instructions: it scores by the query alone", self.name)
            self._warned = True
        with self._lock:
            return self._pairs.scores(pairs, instruction)


def _load(folder: Path, name: str, device: str | None, dtype: str, max_length: int | None) -> _Classifier | _YesOrNo:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("ForSequenceClassification"):
        if config.num_labels != 1:
            raise InputError(
                f"{name} is a classifier with {config.num_labels} labels; expected a cross-encoder, which has one"
            )
        return _Classifier(folder, name, config, device, dtype, max_length)
    if architecture.endswith("ForCausalLM"):
        return _YesOrNo(folder, name, config, device, dtype, max_length)
    raise InputError(
        f"{name} is a {architecture or config.model_type}, which does not score pairs; expected a cross-encoder "
        "(...ForSequenceClassification) or a decoder of Qwen3-Reranker's form"
    )


class _Model:
    """A transformers model with its tokenizer; subclasses say how a pair is written and how the output is read."""

    def __init__(
        self, folder: Path, name: str, config: Any, device: str | None, dtype: str, max_length: int | None, kind: str
    ) -> None:
        import torch
        import transformers

        from searchkit.models.torch_runtime import best_device, choose_dtype, quiet, torch_device

        self.device = torch_device((device or best_device()).partition(",")[0])
        self.dtype = choose_dtype(self.device.type) if dtype == "auto" else dtype
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        if config.get_text_config().pad_token_id is None:  # or the last token cannot be told from padding
            config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        with quiet():
            loader = getattr(transformers, kind)
            self.model, loaded = loader.from_pretrained(
                folder, config=config, dtype=getattr(torch, self.dtype), output_loading_info=True
            )
        if missing := sorted(loaded["missing_keys"]):
            raise InputError(
                f"{name} lacks {len(missing)} of the model's weights, such as {missing[0]}; initialised at random, "
                "they would make its scores meaningless. Expected the folder of a trained reranker"
            )
        self.model.eval().to(self.device)
        limits = [_LONGEST, self.tokenizer.model_max_length, _positions(self.model)]
        limits.append(None if max_length is None else whole_number("max_length", max_length, 1))
        self.max_length = min(int(limit) for limit in limits if limit)
        self._budget = 65536 if self.device.type == "cuda" else 4096  # padded tokens in a batch

    def scores(self, pairs: Sequence[tuple[str, str]], instruction: str | None) -> np.ndarray:
        import torch

        scores = np.empty(len(pairs), np.float32)
        encoded = self.encoded(pairs, instruction)
        for batch in self._batches([len(each["input_ids"]) for each in encoded]):
            inputs = self.tokenizer.pad([encoded[n] for n in batch], return_tensors="pt").to(self.device)
            with torch.inference_mode():
                scores[batch] = self.read(inputs).float().sigmoid().cpu().numpy()
        return scores

    def encoded(self, pairs: Sequence[tuple[str, str]], instruction: str | None) -> list[dict[str, list[int]]]:
        raise NotImplementedError

    def read(self, inputs: Any) -> Any:
        raise NotImplementedError

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Positions, grouped by length so that little is padded."""
        batch: list[int] = []
        for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
            if batch and (len(batch) + 1) * lengths[batch[0]] > self._budget:
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch


class _Classifier(_Model):
    """A classifier with one output, as sentence-transformers' CrossEncoder."""

    def __init__(
        self, folder: Path, name: str, config: Any, device: str | None, dtype: str, max_length: int | None
    ) -> None:
        super().__init__(folder, name, config, device, dtype, max_length, "AutoModelForSequenceClassification")
        # Qwen3-Reranker as a classifier: its one output is "yes" less "no", and it was asked in the same form.
        self.template = config.model_type == "qwen3" and has_chat_marks(self.tokenizer)
        if self.template:
            self.tokenizer.padding_side = "left"

    def encoded(self, pairs: Sequence[tuple[str, str]], instruction: str | None) -> list[dict[str, list[int]]]:
        if not pairs:
            return []
        if self.template:
            return asked(self.tokenizer, pairs, instruction, self.max_length)
        columns = self.tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=self.max_length)
        return [{key: values[n] for key, values in columns.items()} for n in range(len(pairs))]

    def read(self, inputs: Any) -> Any:
        return self.model(**inputs).logits[:, 0]


class _YesOrNo(_Model):
    """A language model: the probability that it answers yes and not no."""

    def __init__(
        self, folder: Path, name: str, config: Any, device: str | None, dtype: str, max_length: int | None
    ) -> None:
        super().__init__(folder, name, config, device, dtype, max_length, "AutoModelForCausalLM")
        vocabulary = self.tokenizer.get_vocab()
        if not has_chat_marks(self.tokenizer) or not {"yes", "no"} <= vocabulary.keys():
            raise InputError(
                f"{name} is a language model whose tokenizer lacks <|im_start|>, yes or no, so it cannot be asked in "
                "Qwen3-Reranker's form; expected that form, or a cross-encoder"
            )
        self._yes, self._no = vocabulary["yes"], vocabulary["no"]
        self.template = True
        self.tokenizer.padding_side = "left"

    def encoded(self, pairs: Sequence[tuple[str, str]], instruction: str | None) -> list[dict[str, list[int]]]:
        return asked(self.tokenizer, pairs, instruction, self.max_length)

    def read(self, inputs: Any) -> Any:
        logits = self.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        return logits[:, self._yes] - logits[:, self._no]  # its sigmoid is the softmax over the two


def _positions(model: Any) -> int | None:
    """Tokens that the model has positions for; RoBERTa and its relatives lose those up to the padding token's id."""
    positions = getattr(model.config, "max_position_embeddings", None)
    embeddings = getattr(model.base_model, "embeddings", None)
    first = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return positions - first - 1 if positions and first is not None else positions


def has_chat_marks(tokenizer: Any) -> bool:
    """Whether the marks of the form are tokens."""
    return {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.get_vocab())


def asked(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], instruction: str | None, max_length: int
) -> list[dict[str, list[int]]]:
    """Token ids of the pairs in Qwen3-Reranker's form; what is too long loses its end, never the question's form."""
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (_ASKED, _ANSWER))
    room = max_length - len(before) - len(after)
    if room < 1:
        raise InputError(f"max_length is {max_length}; the question around a pair alone takes {max_length - room}")
    encoded = []
    for query, document in pairs:
        text = f"<Instruct>: {instruction or WEB_SEARCH}\n<Query>: {query}\n<Document>: {document}"
        ids = before + tokenizer(text, add_special_tokens=False)["input_ids"][:room] + after
        encoded.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
    return encoded
