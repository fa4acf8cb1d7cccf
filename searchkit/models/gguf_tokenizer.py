"""Tokenizers of GGUF files, built from the vocabulary, the merges and the pre-tokenizer that the file names.

transformers chooses the pre-tokenizer by architecture, whatever the file says: SmolLM2 is a llama there, and would not
split digits before spaces as in its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from searchkit.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6  # llama.cpp's kinds of token

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_LLAMA_3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLIT_BY = {
    "qwen2": _QWEN, "deepseek-r1-qwen": _QWEN, "llama-bpe": _LLAMA_3, "llama3": _LLAMA_3, "llama-v3": _LLAMA_3,
    "tekken": _TEKKEN,
}  # fmt: skip
_DIGITS = ("smollm", "starcoder", "refact", "codeshell")  # GPT-2's splits, and every digit on its own
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a word that is a token is not put together by merges
_BEGINS = ("llama-bpe", "llama3", "llama-v3", "tekken")  # with BOS, if the file does not say


def build_tokenizer(values: dict[str, Any], name: str) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    Args:
        values: The file's fields.
        name: The file, for messages.

    Raises:
        InputError: The file describes none, or one of a kind that is not known here.
    """
    tokens = values.get("tokenizer.ggml.tokens")
    if not tokens:
        raise InputError(f"{name} has no vocabulary (tokenizer.ggml.tokens); use a file with its tokenizer")
    _check(values, tokens, name)
    model = values.get("tokenizer.ggml.model")
    if model == "gpt2":
        tokenizer = _byte_level(values, tokens, name)
    elif model == "llama":
        tokenizer = _sentence_piece(values, tokens)
    else:
        raise InputError(
            f"{name} has a tokenizer of kind {model!r}; expected gpt2 (byte-level BPE) or llama (SentencePiece BPE)"
        )
    _add_marks(tokenizer, values, tokens)
    written = tokenizer.get_vocab()
    wrong = next((id for id, token in enumerate(tokens) if written.get(token) != id), None)
    if wrong is not None:
        raise InputError(
            f"{name} lists {tokens[wrong]!r} as token {wrong} and again as {written.get(tokens[wrong])}; such a "
            "vocabulary cannot be written. Use another file"
        )
    return tokenizer


def tokenizer_settings(values: dict[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json says beside the tokenizer: its special tokens and the template of a chat."""
    tokens = values["tokenizer.ggml.tokens"]
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": _adds_bos(values)}
    settings["add_eos_token"] = bool(values.get("tokenizer.ggml.add_eos_token", False))
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for ours, theirs in names.items():
        id = values.get(f"tokenizer.ggml.{theirs}_token_id")
        if id is not None:
            settings[f"{ours}_token"] = tokens[id]
    if "eos_token" in settings:
        settings.setdefault("pad_token", settings["eos_token"])
    if template := values.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    if length := values.get(f"{values['general.architecture']}.context_length"):
        settings["model_max_length"] = int(length)
    settings["clean_up_tokenization_spaces"] = False
    return settings


def _check(values: dict[str, Any], tokens: Sequence[str], name: str) -> None:
    """Refuse a vocabulary whose parts do not fit together."""
    needed = ("scores", "token_type") if values.get("tokenizer.ggml.model") == "llama" else ()
    for part in ("scores", "token_type"):
        given = values.get(f"tokenizer.ggml.{part}")
        if (given is None and part in needed) or (given is not None and len(given) != len(tokens)):
            raise InputError(
                f"{name} has {0 if given is None else len(given)} of tokenizer.ggml.{part} for {len(tokens)} tokens; "
                "use another file"
            )
    for mark in ("bos", "eos", "unknown", "padding"):
        id = values.get(f"tokenizer.ggml.{mark}_token_id")
        if id is not None and not 0 <= id < len(tokens):
            raise InputError(
                f"{name} says that its {mark} token is number {id} of {len(tokens)} tokens; use another file"
            )


def _byte_level(values: dict[str, Any], tokens: Sequence[str], name: str) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind = values.get("tokenizer.ggml.pre")
    merges = [tuple(merge.split(" ", 1)) for merge in values.get("tokenizer.ggml.merges", [])]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=kind in _WHOLE_WORDS))
    if kind == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif kind in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif kind in _SPLIT_BY:
        split = pre_tokenizers.Split(Regex(_SPLIT_BY[kind]), behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    else:
        known = ", ".join(sorted({"gpt-2", *_DIGITS, *_SPLIT_BY}))
        raise InputError(
            f"{name} splits texts by {kind!r} (tokenizer.ggml.pre) before its merges; known are {known}. Use the "
            "model's safetensors, or another file"
        )
    if "qwen" in str(kind):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(values: dict[str, Any], tokens: Sequence[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    kinds, scores = values["tokenizer.ggml.token_type"], values["tokenizer.ggml.scores"]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    unknown = values.get("tokenizer.ggml.unknown_token_id")
    merges = _merges({tokens[id]: scores[id] for id, kind in enumerate(kinds) if kind == _NORMAL}, vocabulary)
    unk = None if unknown is None else tokens[unknown]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    decoded: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if values.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        decoded.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(decoded)
    return tokenizer


def _merges(scores: dict[str, float], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges that lead to each token, best score first, as SentencePiece puts pieces together."""
    found = []
    for token, score in scores.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in scores and right in scores:
                found.append((-score, vocabulary[token], vocabulary[left], vocabulary[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _adds_bos(values: dict[str, Any]) -> bool:
    by_kind = values.get("tokenizer.ggml.model") == "llama" or values.get("tokenizer.ggml.pre") in _BEGINS
    return bool(values.get("tokenizer.ggml.add_bos_token", by_kind))


def _add_marks(tokenizer: Tokenizer, values: dict[str, Any], tokens: Sequence[str]) -> None:
    """Keep control tokens, such as those of a chat, and the model's own words whole; begin and end texts as it says."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    kinds = values.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    marks = [id for id, kind in enumerate(kinds) if kind in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(tokens[id], special=True, normalized=False) for id in marks])
    own = [id for id, kind in enumerate(kinds) if kind == _USER]
    tokenizer.add_tokens([AddedToken(tokens[id], special=False, normalized=False) for id in own])
    bos, eos = (values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    before = [tokens[bos]] if _adds_bos(values) and bos is not None else []
    after = [tokens[eos]] if values.get("tokenizer.ggml.add_eos_token") and eos is not None else []
    if before or after:
        special = [(token, tokenizer.token_to_id(token)) for token in {*before, *after}]
        template = [*before, "$A", *after]
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
