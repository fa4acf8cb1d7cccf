"""Which language a text is in, where it is long enough to tell."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from searchkit.errors import MissingExtraError
from searchkit.scripts import UNSPACED

_UNSPACED = re.compile(f"[{UNSPACED}]")
# Languages that a detector confuses in a few sentences.
_ALIKE = (
    {"hr", "sr", "bs", "sl"}, {"id", "ms", "jv", "su"}, {"no", "nn", "nb", "da", "sv"}, {"cs", "sk"},
    {"es", "gl", "pt", "ca", "ast", "ext", "an", "oc"}, {"hi", "mr", "ne", "sa", "gom"}, {"az", "tr", "tk", "crh"},
    {"ru", "uk", "be", "bg", "mk"}, {"af", "nl", "fy"}, {"fa", "ps", "ur", "ku", "sdh", "sd"}, {"zh", "yue", "wuu"},
    {"kk", "ky", "tt", "ba", "mn"}, {"ga", "gd"}, {"xh", "zu", "nso", "st", "sn", "sw"}, {"as", "bn"},
    {"ar", "ary", "arz"}, {"uz", "uzs", "tk", "ug"}, {"om", "so"}, {"he", "hbo", "yi"}, {"it", "vec", "lij", "la"},
)  # fmt: skip


class Languages:
    """Detects languages; the model is loaded on first use."""

    def __init__(self) -> None:
        try:
            import py3langid  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"detecting languages needs {error.name}: pip install 'searchkit[train]'", name=error.name
            ) from error

    def of(self, text: str) -> str:
        """The code of a text's language, "" where it cannot be told."""
        if not _long_enough(text):
            return ""
        code, probability = _model().classify(text)
        return str(code) if probability >= 0.9 else ""

    def wrong(self, text: str, expected: str) -> str:
        """The language of a text if that is clearly not the expected one, otherwise ""."""
        if not expected or not _long_enough(text):
            return ""
        code = self.of(text)
        if not code or code == expected or expected not in _model().labels:
            return ""
        return "" if any(code in group and expected in group for group in _ALIKE) else code


@cache
def _model() -> Any:
    """Loaded once, which takes half a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _long_enough(text: str) -> bool:
    return len(text) >= 60 or len(_UNSPACED.findall(text)) >= 15
