from __future__ import annotations

import pytest

from searchkit.server.words import matched_words


@pytest.mark.parametrize(
    ("language", "query", "text", "expected"),
    [
        ("english", "a nap helps", "Napping helped; naps do. A napkin is no nap.",
         ["helped", "helps", "nap", "napping", "naps"]),
        ("none", "does a nap help", "A nap does not. Naps do.", ["a", "does", "help", "nap"]),
        ("english", "café", "CAFÉ, cafe\u0301s and cafe", ["café", "cafés"]),
        ("english+fold", "café", "a cafe, a CAFÉ", ["cafe", "café"]),
        ("english", "日本の茶", "緑茶は日本で飲まれる", ["の茶", "日本", "日本の茶", "本の"]),
        ("none", "猫 東京", "黒猫が東京にいる", ["東京", "猫"]),
        ("tamil", "புத்தகம்", "புத்தகங்கள் புத்தகம்", ["தகம", "புத", "புத்தகம்"]),
        ("english", "the of", "the end of it", []),
        ("english", "snake_case", "a snake in a case", ["case", "snake"]),
    ],
)  # fmt: skip
def test_words_that_share_a_term(language: str, query: str, text: str, expected: list[str]) -> None:
    assert matched_words(language, query, [text]) == expected


def test_a_search_with_reasons_names_them(client) -> None:
    body = {"query": "drinking the wine", "k": 3, "explain": True}
    answer = client.post("/indexes/notes/search", json=body).json()
    assert {"drinking", "wine"} <= set(answer["matched_words"])
    assert "the" not in answer["matched_words"]
    many = client.post("/indexes/notes/search", json={"queries": ["wine", "tea"], "explain": True}).json()["results"]
    assert ["wine" in each["matched_words"] for each in many] == [True, False]
    assert "matched_words" not in client.post("/indexes/notes/search", json={"query": "wine"}).json()
