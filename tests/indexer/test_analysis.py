from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from searchkit.indexer import lexical
from searchkit.indexer.analysis import LETTERS, PAIRS, Analyzer
from searchkit.indexer.lexical import LexicalIndex

OLD_INDEX = Path(__file__).parents[1] / "data" / "format3" / "flat"


def found(folder: Path, texts: list[str], query: str, language: str = "english") -> list[int]:
    index = LexicalIndex(folder, language)
    index.add(enumerate(texts))
    rows, _ = index.search(query, 10, len(texts))
    return sorted(rows.tolist())


@pytest.mark.parametrize(
    ("text", "query"),
    [
        (unicodedata.normalize("NFD", "a café by the river"), "café"),
        ("a café by the river", unicodedata.normalize("NFD", "café")),
        ("the \ufb01nance of\ufb01ce", "finance"),
        ("infor\u00adma\u00adtion", "information"),
        ("infor\u200bmation\ufeff", "information"),
        ("\uff26\uff55\uff4c\uff4c width \uff11\uff12", "full 12"),
        ("H\u2082O and x\u00b2", "h2o"),
        ("\u216b years", "xii"),
    ],
)
def test_what_reads_the_same_is_the_same_term(tmp_path: Path, text: str, query: str) -> None:
    assert found(tmp_path, ["nothing here", text], query) == [1]


def test_english_text_is_left_as_it_is() -> None:
    text = "Don't split state-of-the-art, e.g. 3.5 or naïve résumés."
    assert Analyzer("english").prepare(text) == text


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("北京大学", ["北京", "京大", "大学"]),
        ("水", ["水"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("한국어 책", ["한국", "국어", "책"]),
        ("iPhone手机壳 2024", ["iphone", "手机", "机壳", "2024"]),
        ("我,你", ["我", "你"]),
        ("ข้าว", ["ขา", "าว"]),  # without the tone mark, which no keyboard order can be relied on for
        ("𠀀𠀁", ["𠀀𠀁"]),
    ],
)
def test_queries_in_scripts_without_spaces_become_bigrams(text: str, terms: list[str]) -> None:
    assert Analyzer("none").analyze_query(text) == terms


def test_passages_in_scripts_without_spaces_have_their_letters_too() -> None:
    assert Analyzer("none").analyze("東京 2024 水 ข้าว") == [
        "東", "京", "東京", "2024", "水", "ข", "า", "ว", "ขา", "าว"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("猫", "黒猫が好き"),
        ("猫", "吾輩は猫"),
        ("cats 猫 and more", "黒猫が好き"),
        ("C語", "我学习C語言"),
        ("語", "我学习Ｃ語言"),
        ("ｶ", "カメラ"),  # half-width KA
        ("ガ", "ｶﾞﾗｽ"),  # half-width GA RA SU, of two characters
        ("Ａ語", "A語言"),
        ("책", "책을 읽는다"),
        (unicodedata.normalize("NFD", "책"), "책을 읽는다"),
        ("물", "따뜻한물이"),
        ("ณ", "ตั้งอยู่ณเมืองนี้"),
        ("火️", "花火大会"),  # with a variation selector
        ("𠀀", "古𠀀字"),
        ("六", "五六七"),  # a compatibility ideograph of six
    ],
)
def test_a_single_letter_finds_what_contains_it(tmp_path: Path, query: str, text: str) -> None:
    assert found(tmp_path, ["something else 別物 다른 것", text, "อื่น"], query, "none") == [1]


def test_single_letters_are_ranked_by_how_often_they_occur(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path, "none")
    index.add(enumerate(["一匹の犬と猫がいる", "猫と猫と白猫がいる", "鳥がいる"]))
    assert index.search("猫", 10, 3)[0].tolist() == [1, 0]
    assert sorted(index.matching("猫", 3).tolist()) == [0, 1]
    assert index.ceiling("猫")[0] > index.search("猫", 1, 3)[1][0]


def test_a_word_of_two_letters_is_not_looked_for_by_one_of_them(tmp_path: Path) -> None:
    assert found(tmp_path, ["東の京", "東京"], "東京") == [1]


def test_chinese_is_found_by_its_words(tmp_path: Path) -> None:
    texts = ["流感疫苗", "糖尿病患者请减糖", "股票暴跌", "吸尘器坏了", "请问您贵姓"]
    assert found(tmp_path, texts, "疫苗接种") == [0]


@pytest.mark.parametrize(
    "text", ["\U0001f600", "\u0e48", "\u200d", "", "\U000e0100", "\ud7a4", "का", "ሰላም", "👨\u200d👩\u200d👧", "\u3000"]
)
def test_odd_text_is_indexed_and_searched_without_an_error(tmp_path: Path, text: str) -> None:
    assert 0 not in found(tmp_path, ["plain words", text], text)


def test_an_index_of_pairs_alone_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is built again: letters of later passages alone would distort what terms weigh."""
    with monkeypatch.context() as earlier:
        earlier.setitem(lexical._TOKENIZERS, LETTERS, lexical._TOKENIZERS[PAIRS])
        earlier.setattr(lexical, "_terms_of", lambda folder: PAIRS)
        LexicalIndex(tmp_path, "none").add([(0, "黒猫が好き"), (1, "猫")])
    assert not lexical.has_current_terms(tmp_path)
    index = LexicalIndex(tmp_path, "none")
    index.add([(2, "白猫"), (3, "猫")])
    assert index.search("猫", 10, 4)[0].tolist() == [1, 3]
    assert index.search("黒猫", 10, 4)[0].tolist() == [0]


def test_an_index_of_an_older_version_keeps_its_terms(tmp_path: Path) -> None:
    """What it holds was not normalised, and a normalised query would miss it."""
    folder = next((OLD_INDEX / "lexical").iterdir())
    shutil.copytree(folder, tmp_path / "lexical")
    index = LexicalIndex(tmp_path / "lexical", "english")
    before = len(index)
    index.add([(1000, "of\ufb01ce")])
    assert len(index) == before + 1
    assert index.search("of\ufb01ce", 5, 2000)[0].tolist() == [1000]
    assert len(index.search("office", 5, 2000)[0]) == 0
    assert np.isfinite(index.ceiling("tea")[0])


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("french", "théâtre tempête élève épreuve forêt reçu naïve œuvre cœur"),
        ("german", "Brücke Mädchen größer Straße"),
        ("spanish", "niño canción pingüino años corazón"),
        ("portuguese", "coração informação avó"),
        ("italian", "città università"),
        ("romanian", "știință țară știință"),
        ("turkish", "çiçek İstanbul \u0131\u015f\u0131k ağaç"),
        ("russian", "ёлка мёд"),
        ("none", "Łódź żółta Đà Nẵng Ærø Þór Ελλάδα καφές"),
    ],
)
def test_with_fold_accents_make_no_difference(language: str, text: str) -> None:
    letters = {"œ": "oe", "ß": "ss", "Ł": "L", "ł": "l", "Đ": "D", "Æ": "Ae", "ø": "o", "Þ": "Th", "\u0131": "i"}
    marks = unicodedata.normalize("NFD", text.translate(str.maketrans(letters)))
    typed = "".join(character for character in marks if not unicodedata.combining(character))
    assert typed != text
    assert Analyzer(f"{language}+fold").analyze(typed) == Analyzer(f"{language}+fold").analyze(text) != []
    assert Analyzer(f"{language}+fold").analyze(unicodedata.normalize("NFD", text)) == Analyzer(
        f"{language}+fold"
    ).analyze(text)


def test_folding_keeps_what_is_no_accent() -> None:
    text = "чай й が 東京 ข้าว हिन्दी 3.5 state-of-the-art"
    assert Analyzer("none+fold").analyze(text) == Analyzer("none").analyze(text)


def test_folding_drops_stop_words_as_they_are_spelled() -> None:
    assert Analyzer("french+fold").analyze("à même le théâtre") == ["theatr"]


def test_folding_changes_nothing_in_plain_english() -> None:
    text = "Running tests, the users' state-of-the-art caches."
    assert Analyzer("english+fold").analyze(text) == Analyzer("english").analyze(text)


@pytest.mark.parametrize("language", ["klingon+fold", "french+folded", "+fold", "french + fold"])
def test_a_language_that_cannot_be_folded_is_refused(language: str) -> None:
    with pytest.raises(ValueError, match=r"no stemmer for language .*; to ignore accents, each with \+fold after it"):
        Analyzer(language)
