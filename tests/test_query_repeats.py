"""Models that read a query more than once: what they see, when they do not, what else can read them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXTS, build_model

from searchkit.binding import check_model
from searchkit.conventions import Conventions
from searchkit.embedder import Embedder
from searchkit.indexer.files import StoreError
from searchkit.training.config import TrainConfig
from searchkit.training.export import export
from searchkit.training.model import lay_out, prepare, save
from searchkit.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module", params=["bert", "mistral"])
def repeating(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp(request.param)
    base = build_model(folder / "base", request.param)
    attention = "causal" if request.param == "bert" else None
    config = TrainConfig(
        sources=("none",), base=str(base), out="out", attention=attention, pooling="weighted-mean", query_repeats=2,
        max_length=200,
    )  # fmt: skip
    lay_out(config, folder / "work")
    return prepare(config, folder / "work", device="cpu")


def test_the_query_is_repeated_and_neither_its_instruction_nor_a_passage() -> None:
    conventions = Conventions(query_prefix="query: ", query_repeats=3)
    assert conventions.asked("{query} tea", "") == "query: {query} tea {query} tea {query} tea"
    assert conventions.asked("tea", "Find {query}") == "Instruct: Find {query}\nQuery: tea tea tea"
    assert conventions.asked("tea", "Find it", 1) == "Instruct: Find it\nQuery: tea"


def test_vectors_are_those_of_the_text_written_so(repeating: Embedder) -> None:
    written = [f"{text} {text}" for text in TEXTS]
    instruction = "Find the tea"
    found = [repeating.encode_queries(TEXTS, said) for said in ("", instruction)]
    passages = repeating.encode_passages(written)
    plain = repeating.encode_passages(TEXTS)
    told = repeating.encode_passages([f"Instruct: {instruction}\nQuery: {text}" for text in written])
    np.testing.assert_allclose(found[0], passages, atol=1e-6)
    np.testing.assert_allclose(found[1], told, atol=1e-6)
    assert np.abs(passages - plain).max() > 1e-3


def test_read_again_every_token_has_seen_the_last_one(repeating: Embedder) -> None:
    import torch

    ids = [torch.tensor(repeating.tokenize_queries([text], [""])) for text in ("tea is hot", "tea is old")]
    model = repeating.runtime.model  # type: ignore[attr-defined]
    with torch.inference_mode():
        one, other = (model(input_ids=row).last_hidden_state[0] for row in ids)
    word = ids[0][0][len(repeating.frame[0]) + len(repeating.runtime.tokenizer.encode("tea", add_special_tokens=False))]
    first, again = (ids[0][0] == word).nonzero().flatten().tolist()
    assert torch.allclose(one[first], other[first], atol=1e-6)
    assert not torch.allclose(one[again], other[again], atol=1e-3)


def test_a_query_that_would_be_cut_for_it_is_written_once(repeating: Embedder) -> None:
    room = repeating.max_length - repeating.special_tokens
    tokenizer = repeating.runtime.tokenizer
    word = next(word for word in "abco" if len(tokenizer.encode(f"{word} {word}", add_special_tokens=False)) == 2)
    queries = [" ".join([word] * count) for count in (room // 2, room // 2 + 1, room, room + 1)]
    before = repeating.stats.truncated
    rows = repeating.encode_queries(["tea", *queries], "")
    assert repeating.stats.truncated - before == 1, "only the last does not fit at all"
    counts = [len(ids) for ids in repeating.tokenize_queries(queries, [""] * 4)]
    assert counts == [count + repeating.special_tokens for count in (room // 2 * 2, room // 2 + 1, room, room)]
    assert repeating.query_tokens(queries, "")[-1] == room + 1 + repeating.special_tokens
    np.testing.assert_allclose(rows[2:], repeating.encode_passages(queries[1:]), atol=1e-6)
    with pytest.raises(ValueError, match="leaves no room for a query"):
        repeating.encode_queries(["tea"], " ".join([word] * room))


def test_saved_or_exported_it_repeats_and_sentence_transformers_reads_what_is_written(
    repeating: Embedder, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    attention = "causal" if "bert" in str(repeating.folder) else None
    expected = repeating.encode_queries(TEXTS, "Find the tea")
    save(repeating, tmp_path / "out", card="", default_instruction="Find the tea", dims=(), attention=attention)
    export(tmp_path / "out", tmp_path / "onnx", dtype="float32")
    for folder in ("out", "onnx"):
        loaded = Embedder(tmp_path / folder, device="cpu")
        assert loaded.conventions.query_repeats == 2
        np.testing.assert_allclose(loaded.encode_queries(TEXTS), expected, atol=1e-4)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    found = theirs.encode([f"{text} {text}" for text in TEXTS], prompt_name="query")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_training_reads_queries_as_searching_does(config: TrainConfig, tmp_path: Path) -> None:
    report = train(replace(config, max_steps=1, out=str(tmp_path / "once")))
    again = train(replace(config, max_steps=1, out=str(tmp_path / "twice"), query_repeats=2))
    assert again.tokens > report.tokens
    card = (tmp_path / "twice" / "README.md").read_text()
    assert '" ".join([query] * 2)' in card
    assert "query_repeats" in json.loads((tmp_path / "twice" / "config_sentence_transformers.json").read_text())
    kept = train(replace(config, max_steps=1, base=str(tmp_path / "twice"), out=str(tmp_path / "kept")))
    assert kept.tokens == again.tokens
    assert '" ".join([query] * 2)' in (tmp_path / "kept" / "README.md").read_text()
    assert Embedder(tmp_path / "kept", device="cpu").conventions.query_repeats == 2


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", None])
def test_a_number_of_times_that_is_none_is_refused(wrong: object, embedder: Embedder, tmp_path: Path) -> None:
    save_plain(embedder, tmp_path / "model")
    file = tmp_path / "model" / "config_sentence_transformers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "query_repeats": wrong}))
    with pytest.raises(ValueError, match=r"query_repeats .*; expected a whole number, 1 or more"):
        Embedder(tmp_path / "model", device="cpu")
    if isinstance(wrong, int):
        with pytest.raises(ValueError, match="query_repeats is"):
            TrainConfig(sources=("none",), base="base", out="out", query_repeats=wrong)


def save_plain(embedder: Embedder, out: Path) -> None:
    config = TrainConfig(sources=("none",), base=str(embedder.folder), out="out")
    lay_out(config, out / "work")
    save(prepare(config, out / "work", device="cpu"), out, card="", default_instruction=None, dims=())


def test_an_index_from_before_there_were_repeats_is_of_the_same_model(embedder: Embedder) -> None:
    identity = embedder.identity()
    before = {key: value for key, value in identity.items() if key != "query_repeats"}
    check_model(before, embedder)
    with pytest.raises(StoreError, match="query_repeats: index 2, model 1"):
        check_model({**identity, "query_repeats": 2}, embedder)


def test_a_tokenizer_that_makes_no_tokens_is_refused(tmp_path: Path) -> None:
    base = build_model(tmp_path / "base", "bert")
    file = base / "tokenizer.json"
    dropping = {"type": "Replace", "pattern": {"Regex": "[ab ]"}, "content": ""}
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": dropping}))
    with pytest.raises(ValueError, match="makes no tokens of 'a b'"):
        Embedder(base, device="cpu")


def test_a_tokenizer_that_says_a_text_twice_is_refused(tmp_path: Path) -> None:
    base = build_model(tmp_path / "base", "bert")
    file = base / "tokenizer.json"
    settings = json.loads(file.read_text())
    processor = settings["post_processor"]
    processor["single"] = processor["single"][:-1] + processor["single"][1:]
    file.write_text(json.dumps(settings))
    kind = base / "tokenizer_config.json"
    kind.write_text(json.dumps({**json.loads(kind.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(ValueError, match="loses them or repeats them"):
        Embedder(base, device="cpu")
