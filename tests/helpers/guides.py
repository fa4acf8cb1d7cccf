"""Programs out of the guides."""

from __future__ import annotations

import re
from pathlib import Path

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"


def guide_program(page: str) -> str:
    """The first Python block of a page."""
    match = re.search(r"^```python\n(.*?)^```", (GUIDES / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert match, page
    return match[1]
