from __future__ import annotations

import re
from pathlib import Path

from commands import call


def test_two_instructions_have_two_right_first_answers(tmp_path: Path) -> None:
    shown = call("demo", "--index", tmp_path / "demo.index").stdout
    firsts = re.findall(r"^1 │ [\d.]+ │ (\S+)", shown, flags=re.MULTILINE)
    assert firsts == ["homework-3", "homework-2"]  # the question in other words, and an answer to it
    assert "193 queries with judgements" in shown
    assert "is an index already; --force deletes it" in call("demo", "--index", tmp_path / "demo.index", code=1).stderr
