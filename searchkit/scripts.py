"""Writing systems: which of them put no spaces between words."""

from __future__ import annotations

import re

UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai to Burmese, Khmer, kana and Han, for a character class: there every character counts as a word."""

WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
"""One word, or one character where a script has no spaces between words."""
