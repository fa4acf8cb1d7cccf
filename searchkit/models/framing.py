"""The special tokens around every text: BOS and EOS where a model needs them, whatever its tokenizer does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from searchkit.errors import InputError
from searchkit.models.conventions import Conventions
from searchkit.models.runtime import Runtime


def frame_of(runtime: Runtime, conventions: Conventions, name: str) -> tuple[list[int], list[int]]:
    """The special tokens before and after every text, with BOS and EOS added where the model needs them.

    Raises:
        InputError: The tokenizer loses or repeats texts, or has no EOS although the model pools at it.
    """
    tokenizer: Any = runtime.tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    probe = "a b"
    encoding = tokenizer.encode(probe, add_special_tokens=False)
    bare = encoding.ids
    if any(start < before for (before, _), (start, _) in pairwise(encoding.offsets)):
        raise InputError(
            f"the tokenizer of {name} repeats every text; remove the repetition from the template in its "
            "tokenizer.json (also for models trained with --twice), or train again with --query-repeats 2"
        )
    framed = tokenizer.encode(probe, add_special_tokens=True).ids
    start = next((i for i in range(len(framed)) if bare and framed[i : i + len(bare)] == bare), None)
    if start is None:
        raise InputError(f"the tokenizer of {name} gives no tokens for {probe!r}, or loses them; use another")
    before, after = framed[:start], framed[start + len(bare) :]
    if conventions.append_eos:
        if runtime.eos_id is None:
            raise InputError(f"{name} pools at EOS but its tokenizer names no eos_token; use its own tokenizer")
        if after[-1:] != [runtime.eos_id]:
            after.append(runtime.eos_id)
    if runtime.bos_id is not None and before[:1] != [runtime.bos_id]:
        before.insert(0, runtime.bos_id)
    return before, after
