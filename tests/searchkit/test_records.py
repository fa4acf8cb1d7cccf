from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from searchkit.records import Document, join_title

DOCUMENT = Document("a", "Bread rises.", title="Bread", metadata={"year": 1998, "by": "Ö"}, place="x.jsonl:3")


@pytest.mark.parametrize("change", [{"id": "b"}, {"text": "Bread sinks."}, {"title": ""}, {"metadata": {}}])
def test_a_checksum_changes_with_everything_that_is_stored(change: dict[str, Any]) -> None:
    assert replace(DOCUMENT, **change).checksum() != DOCUMENT.checksum()


def test_a_checksum_ignores_the_place_and_the_order_of_keys() -> None:
    moved = replace(DOCUMENT, place="y.jsonl:9", metadata={"by": "Ö", "year": 1998})
    assert moved == DOCUMENT
    assert moved.checksum() == DOCUMENT.checksum()


def test_a_checksum_distinguishes_title_from_text() -> None:
    assert Document("a", "bc").checksum() != Document("a", "c", title="b").checksum()


@pytest.mark.parametrize(
    ("title", "text", "joined"),
    [("Bread", "It rises.", "Bread It rises."), ("", " It rises. ", "It rises."), ("Bread", "", "Bread"), ("", "", "")],
)
def test_titles_are_joined_by_one_space_as_beir_does(title: str, text: str, joined: str) -> None:
    assert join_title(title, text) == joined
