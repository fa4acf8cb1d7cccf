from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from texts import SENTENCES, TEXTS

from searchkit.chunking import chunk
from searchkit.ingest import chunk_settings, to_passages
from searchkit.models.embedder import Embedder
from searchkit.records import Document

Spans = list[tuple[int, int]]
CJK = "橋は修理のために閉鎖された" * 30


def words(text: str) -> Spans:
    """A token a word, without the space before it, as WordPiece counts."""
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def spaced(text: str) -> Spans:
    """A token a word or half a long one, with the space before it, as byte-level BPE counts."""
    return [match.span() for match in re.finditer(r"\s?\w{1,6}|\s?[^\w\s]|\s", text)]


def letters(text: str) -> Spans:
    """A token a character."""
    return [(n, n + 1) for n in range(len(text))]


def byte_tokens(text: str) -> Spans:
    """A token a byte: all bytes of a character have its place, as byte-level BPE gives them."""
    return [(place, place + 1) for place, character in enumerate(text) for _ in character.encode()]


TOKENIZERS = [words, spaced, byte_tokens]


def random_text(seed: int) -> str:
    """Sentences, words without end, blank lines and CJK in any order."""
    pick = random.Random(seed)
    parts = [pick.choice([*SENTENCES, "word " * 9, "x" * 40, "\n\n", "   ", "橋は修理。", "e.g. 3.14 (so!) "])
             for _ in range(pick.randint(1, 60))]  # fmt: skip
    return pick.choice(["", " "]).join(parts) + pick.choice(["", "\n", "."])


def sizes(seed: int) -> tuple[int, int]:
    pick = random.Random(seed)
    tokens = pick.randint(16, 50)
    return tokens, pick.randint(0, tokens // 2)


def held(spans: Spans, places: Spans) -> list[range]:
    """Which tokens each passage holds some characters of."""
    found = []
    for start, stop in spans:
        inside = [n for n, place in enumerate(places) if place[1] > start and place[0] < stop]
        found.append(range(inside[0], inside[-1] + 1))
    return found


@pytest.mark.parametrize("tokenize", TOKENIZERS)
@pytest.mark.parametrize("seed", range(12))
def test_every_character_that_is_not_white_space_is_in_a_passage(seed: int, tokenize) -> None:  # type: ignore[no-untyped-def]
    text, (tokens, overlap) = random_text(seed), sizes(seed)
    covered = {place for span in chunk(text, tokenize, tokens=tokens, overlap=overlap) for place in range(*span)}
    assert all(text[place].isspace() for place in range(len(text)) if place not in covered)


@pytest.mark.parametrize("tokenize", TOKENIZERS)
@pytest.mark.parametrize("seed", range(12))
def test_no_passage_has_more_than_the_tokens_allowed(seed: int, tokenize) -> None:  # type: ignore[no-untyped-def]
    text, (tokens, overlap) = random_text(seed), sizes(seed)
    spans = chunk(text, tokenize, tokens=tokens, overlap=overlap)
    assert all(len(tokenize(text[start:stop])) <= tokens for start, stop in spans)


@pytest.mark.parametrize("seed", range(12))
def test_passages_are_trimmed_and_move_forward(seed: int) -> None:
    text, (tokens, overlap) = random_text(seed), sizes(seed)
    spans = chunk(text, words, tokens=tokens, overlap=overlap)
    assert all(text[start:stop] == text[start:stop].strip() != "" for start, stop in spans)
    assert all(before[0] < after[0] and before[1] < after[1] for before, after in pairwise(spans))


@pytest.mark.parametrize("overlap", [0, 1, 5, 10])
def test_neighbours_share_the_overlap_and_little_more(overlap: int) -> None:
    text = " ".join(TEXTS)
    passages = held(chunk(text, words, tokens=20, overlap=overlap), words(text))
    shared = [before.stop - after.start for before, after in pairwise(passages)]
    assert all(overlap <= count <= overlap + (max(overlap, 3) if overlap else 0) for count in shared)


@pytest.mark.parametrize("overlap", [5, 20])
def test_without_spaces_the_overlap_does_not_grow(overlap: int) -> None:
    spans = chunk(CJK, letters, tokens=40, overlap=overlap)
    assert spans == [(start, min(start + 40, len(CJK))) for start in range(0, len(CJK) - overlap, 40 - overlap)]


@pytest.mark.parametrize("tokenize", TOKENIZERS[:2])
def test_passages_end_where_a_sentence_ends_in_their_last_quarter(tokenize) -> None:  # type: ignore[no-untyped-def]
    text = " ".join(TEXTS)  # no sentence has more than 14 tokens, so each last quarter of 60 has an end
    spans = chunk(text, tokenize, tokens=60, overlap=0)
    assert len(spans) > 3
    assert all(text[start:stop].endswith(".") and text[start].isupper() for start, stop in spans)


@pytest.mark.parametrize("end", [". ", "? ", "! ", '." ', ".) ", "… ", "\n", "\u3002", "\uff01", "\uff1f"])
def test_sentences_end_with_the_usual_punctuation(end: str) -> None:
    text = "a b c d e f g" + end + "h i j k l m n o p"
    first, *_ = chunk(text, words, tokens=len(words("a b c d e f g" + end)) + 1, overlap=0)
    assert text[slice(*first)] == ("a b c d e f g" + end).strip()


def test_a_point_within_a_number_ends_no_sentence() -> None:
    text = "one two three four five costs 3.14 euro and some more"
    first, *_ = chunk(text, lambda text: [m.span() for m in re.finditer(r"\S+", text)], tokens=8, overlap=0)
    assert text[slice(*first)] == "one two three four five costs 3.14 euro"


def test_words_are_not_cut() -> None:
    text = " ".join(random.Random(0).choices(["lexicography", "gas", "immune", "understanding"], k=200))
    spans = chunk(text, spaced, tokens=16, overlap=4)
    assert len(spans) > 10
    assert {word for span in spans for word in text[slice(*span)].split()} <= set(text.split())


def test_a_word_longer_than_a_passage_is_cut_between_tokens() -> None:
    assert chunk("x" * 100, letters, tokens=40, overlap=0) == [
        (0, 40),
        (40, 80),
        (80, 100),
    ]


@pytest.mark.parametrize("tokens", [8, 9, 10, 11])
def test_a_character_of_several_tokens_is_never_cut_in_two(tokens: int) -> None:
    spans = chunk(CJK, byte_tokens, tokens=tokens, overlap=0)  # 3 tokens a character
    assert "".join(CJK[slice(*span)] for span in spans) == CJK
    assert max(stop - start for start, stop in spans) == tokens // 3


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000"])
def test_blank_texts_have_no_passages(text: str) -> None:
    assert chunk(text, words, tokens=8, overlap=0) == []


@pytest.mark.parametrize("text", ["tea", "  tea and milk\n", "a b c d e f g h"])
def test_a_text_that_fits_is_one_passage(text: str) -> None:
    (span,) = chunk(text, words, tokens=8, overlap=4)
    assert text[slice(*span)] == text.strip()


def test_a_long_stretch_of_white_space_makes_no_passage() -> None:
    text = "a" + " " * 100 + "b"
    spans = chunk(text, letters, tokens=10, overlap=0)
    assert [text[slice(*span)] for span in spans] == ["a", "b"]


def test_a_text_of_no_tokens_but_some_characters_is_kept() -> None:
    assert chunk("\u200b", lambda text: [], tokens=8, overlap=0) == [(0, 1)]


@pytest.mark.parametrize(("tokens", "overlap"), [(0, 0), (8, -1), (8, 6), (8, 8)])
def test_an_overlap_that_prevents_progress_is_refused(tokens: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="the overlap must be under 3/4"):
        chunk("tea", words, tokens=tokens, overlap=overlap)


MIXED = "Naïve cafés, piñatas & smörgåsbord: 3.14!\n\tcôte-d'azur  (été) 橋は修理 emoji 🎉🎉 don't re-enter\n" * 12


@pytest.mark.parametrize("title", ["", "Piñatas", "The history of bridges, " * 9], ids=["untitled", "short", "long"])
@pytest.mark.parametrize("text", [" ".join(TEXTS), CJK, MIXED], ids=["english", "cjk", "mixed"])
def test_passages_of_a_byte_level_tokenizer_are_never_too_long(embedder: Embedder, text: str, title: str) -> None:
    # Its tokens hold the space before a word, so that a passage's first word may take more of them than in the text.
    for tokens in range(24, 48):
        _, passages = to_passages(Document("1", text, title), "", embedder, tokens, tokens // 8)
        assert max(embedder.passage_tokens(passages)) <= tokens + embedder.special_tokens
        assert {c for passage in passages for c in passage} >= {c for c in text if not c.isspace()}
        assert len(passages) < 4 * len(embedder.offsets(text)) / tokens + 2


def test_no_passage_of_a_byte_level_tokenizer_is_truncated(mistral: Path) -> None:
    embedder = Embedder(mistral, device="cpu", dtype="float32", max_length=40)
    text = " ".join(random.Random(1).choices(SENTENCES, k=60))
    settings = chunk_settings(embedder, None, None)
    _, passages = to_passages(Document("1", text, "Tea"), "", embedder, settings["chunk_tokens"], settings["overlap"])
    embedder.encode_passages(passages)
    assert embedder.stats.truncated == 0
