"""Text that a model's vocabulary does not have is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

from searchkit.cli.main import main
from searchkit.models.embedder import Embedder
from searchkit.models.vocabulary import unknown_ids


@pytest.fixture(scope="module")
def builtin() -> Embedder:
    return Embedder("builtin")


@pytest.mark.parametrize(
    "text",
    ["流感疫苗接种", "日本語の文章です", "สวัสดีครับ", "ሰላም", "привет, как дела", "Καλημέρα κόσμε", "שלום עולם", "🎉🎉"],
)
def test_other_scripts_are_unreadable_to_the_built_in_model(builtin: Embedder, text: str) -> None:
    assert builtin.unknown_shares([text])[0] > 0.5
    before = builtin.stats.unreadable
    builtin.encode_passages([text, "green tea"])
    assert builtin.stats.unreadable == before + 1


@pytest.mark.parametrize(
    "text",
    ["", "green tea", "naïve café — “déjà vu” …", "\u03b1-synuclein in \u03bcM", "Zürich", "a 🍵 for two", "5 °C"],
)
def test_english_with_signs_is_readable(builtin: Embedder, text: str) -> None:
    assert builtin.unknown_shares([text])[0] < 0.3


def test_single_characters_are_words_to_a_vocabulary_that_has_enough_of_them() -> None:
    tokens = ["[UNK]", "##s", "и", "##и", *map(chr, range(0x4E00, 0x4E00 + 2500))]
    tokenizer = Tokenizer(WordPiece({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    assert unknown_ids(tokenizer) == {0, 3}


def test_a_byte_level_tokenizer_knows_everything(embedder: Embedder) -> None:
    embedder.encode_passages(["plain"])
    assert embedder.unknown_shares(["plain", ""]) == [0, 0]


def test_indexing_and_searching_say_what_to_do(tmp_path: Path) -> None:
    rows = [{"id": "flu", "text": "流感疫苗"}, {"id": "tea", "text": "green tea"}]
    (tmp_path / "zh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = str(tmp_path / "zh.index")
    built = CliRunner().invoke(main, ["index", str(tmp_path / "zh.jsonl"), "--index", index])
    assert "1 of 2 passages are in scripts that builtin does not know" in built.stderr
    assert "a multilingual one: --model" in built.stderr
    assert "does not know the script of: 疫苗" in CliRunner().invoke(main, ["search", index, "疫苗"]).stderr
    assert CliRunner().invoke(main, ["search", index, "tea"]).stderr == ""
    assert CliRunner().invoke(main, ["search", index, "疫苗", "--mode", "lexical"]).stderr == ""
