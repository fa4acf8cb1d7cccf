from __future__ import annotations

import re
from pathlib import Path

from commands import call, write_lines


def test_two_instructions_have_two_right_first_answers_and_only_force_replaces_an_index(tmp_path: Path) -> None:
    notes, index = write_lines(tmp_path / "notes.jsonl", [{"id": "a", "text": "tea"}]), tmp_path / "precious.index"
    call("index", notes, "--index", index)
    before = (index / "index.db").read_bytes()
    assert "is an index already; --force deletes it" in call("demo", "--index", index, code=1).stderr
    assert (index / "index.db").read_bytes() == before
    shown = call("demo", "--index", index, "--force").stdout
    firsts = re.findall(r"^1 │ [\d.]+ │ (\S+)", shown, flags=re.MULTILINE)
    assert firsts == ["homework-3", "homework-2"]  # the question in other words, and an answer to it
    assert "Indexed 383 documents" in shown
    assert "193 queries with judgements" in shown
