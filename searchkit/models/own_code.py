"""Models that bring Python code of their own: refused, unless the user trusts them by name."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from searchkit.errors import InputError

logger = logging.getLogger(__name__)

TRUST = "SEARCHKIT_TRUST_CODE"
"""Environment variable with the models, separated by commas, whose code may run: names or folders as they are named."""


def is_trusted(name: str) -> bool:
    """Whether the user trusts the code of a model of that name or folder."""
    entries = [entry.strip() for entry in os.environ.get(TRUST, "").split(",")]
    return any(entry and (entry == name or str(Path(entry).expanduser().resolve()) == name) for entry in entries)


def runs_own_code(folder: Path, name: str) -> bool:
    """Whether a model's own code is to be run.

    Args:
        folder: The model's files.
        name: The model as the user knows it; an absolute path for a folder.

    Raises:
        InputError: The installed transformers does not know the architecture, and the user does not trust the model.
    """
    from transformers import CONFIG_MAPPING

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    code = config.get("auto_map") or {}
    if "AutoModel" not in code and "AutoConfig" not in code:
        return False
    if is_trusted(name):
        logger.warning("%s runs code of its own, as %s says: %s", name, TRUST, ", ".join(sorted(set(_files(code)))))
        return True
    if config.get("model_type") in CONFIG_MAPPING:
        logger.info("%s brings code of its own; transformers' own implementation is used instead", name)
        return False
    raise InputError(
        f"{name} needs code of its own ({', '.join(sorted(set(_files(code))))}), which could do anything on this "
        f"machine, and transformers has no implementation of {config.get('model_type')!r}. If you have read and trust "
        f"it: {TRUST}={name}"
    )


def _files(code: dict[str, object]) -> list[str]:
    entries = [entry for value in code.values() for entry in (value if isinstance(value, list) else [value])]
    return [str(entry).rpartition(".")[0].replace(".", "/") + ".py" for entry in entries if entry]
