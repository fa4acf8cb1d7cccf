"""Models that read a query more than once: what they see, when they do not, what else can read them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import TEXTS
from tiny_models import build_model

from searchkit.binding import check_model
from searchkit.errors import StoreError
from searchkit.models.conventions import Conventions
from searchkit.models.embedder import Embedder
from searchkit.models.torch_runtime import TorchRuntime
from searchkit.readers.rejects import Rejects
from searchkit.training.config import TrainConfig
from searchkit.training.dataset import read_examples
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
    assert conventions.prompt("{query} tea", "") == "query: {query} tea {query} tea {query} tea"
    assert conventions.prompt("tea", "Find {query}") == "Instruct: Find {query}\nQuery: tea tea tea"
    assert conventions.prompt("tea", "Find it", 1) == "Instruct: Find it\nQuery: tea"


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
    lengths = [count + repeating.special_tokens for count in (room // 2, room // 2 + 1, room, room + 1)]
    assert repeating.query_tokens(queries, "") == lengths
    np.testing.assert_allclose(rows[2:], repeating.encode_passages(queries[1:]), atol=1e-6)
    with pytest.raises(ValueError, match="leaves no room for a query"):
        repeating.encode_queries(["tea"], " ".join([word] * room))


def test_a_long_query_is_written_as_often_as_there_is_room_for(repeating: Embedder) -> None:
    room = repeating.max_length - repeating.special_tokens
    often = Embedder(
        repeating.folder, device="cpu", dtype="float32", conventions=replace(repeating.conventions, query_repeats=4)
    )
    tokenizer = often.runtime.tokenizer
    word = next(word for word in "abco" if len(tokenizer.encode(f"{word} {word}", add_special_tokens=False)) == 2)
    sizes = [room // times + extra for times in (4, 3, 2, 1) for extra in (0, 1)]
    queries = [" ".join([word] * size) for size in sizes]
    found = often.tokenize_queries(queries, [""] * len(queries))
    expected = [min(room, size * max(1, min(4, room // size))) for size in sizes]
    assert [len(ids) - often.special_tokens for ids in found] == expected
    assert len(set(expected)) > 3


def test_saved_or_exported_it_repeats_and_sentence_transformers_reads_what_is_written(
    repeating: Embedder, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    attention = "causal" if "bert" in str(repeating.folder) else None
    expected = repeating.encode_queries(TEXTS, "Find the tea")
    save(repeating, tmp_path / "out", card="", default_instruction="Find the tea", dims=(), attention=attention)
    export(tmp_path / "out", tmp_path / "onnx", dtype="float32")
    for folder in ("out", "onnx"):
        loaded = Embedder(tmp_path / folder, device="cpu", dtype="float32" if folder == "out" else "auto")
        assert loaded.conventions.query_repeats == 2
        np.testing.assert_allclose(loaded.encode_queries(TEXTS), expected, atol=1e-4)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    found = theirs.encode([f"{text} {text}" for text in TEXTS], prompt_name="query")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_training_reads_queries_as_searching_does_and_passages_once(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[tuple[int, ...]] = set()
    pooled = TorchRuntime.pooled

    def recorded(runtime: TorchRuntime, batch: list[list[int]], conventions: Conventions) -> Any:
        read.update(map(tuple, batch))
        return pooled(runtime, batch, conventions)

    config = replace(config, max_steps=1, max_length=200)
    once = train(replace(config, out=str(tmp_path / "once")))
    monkeypatch.setattr(TorchRuntime, "pooled", recorded)
    again = train(replace(config, out=str(tmp_path / "twice"), query_repeats=2))
    monkeypatch.undo()
    assert again.tokens > once.tokens
    embedder = Embedder(tmp_path / "twice", device="cpu", dtype="float32")
    with Rejects(tmp_path / "rejects.jsonl") as rejects:
        examples = list(read_examples(Path(config.sources[0]), rejects=rejects))
    asked = embedder.tokenize_queries([each.query for each in examples], [each.instruction or "" for each in examples])
    texts = [text for each in examples for text in (each.positive, *each.negatives)]
    queries, passages = ({tuple(ids) for ids in found} for found in (asked, embedder.tokenize(texts)))
    assert len(read & queries) == config.batch_size
    assert read <= queries | passages
    assert not queries & passages
    card = (tmp_path / "twice" / "README.md").read_text()
    assert '" ".join([query] * 2)' in card
    assert "query_repeats" in json.loads((tmp_path / "twice" / "config_sentence_transformers.json").read_text())
    kept = train(replace(config, base=str(tmp_path / "twice"), out=str(tmp_path / "kept")))
    assert kept.tokens == again.tokens
    assert '" ".join([query] * 2)' in (tmp_path / "kept" / "README.md").read_text()
    assert Embedder(tmp_path / "kept", device="cpu").conventions.query_repeats == 2


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", None])
def test_a_number_of_times_that_is_none_is_refused(wrong: object, embedder: Embedder, tmp_path: Path) -> None:
    save_plain(embedder, tmp_path / "model")
    file = tmp_path / "model" / "config_sentence_transformers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "query_repeats": wrong}))
    with pytest.raises(ValueError, match=r"query_repeats .*; expected an integer, 1 or more"):
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
    assert identity == before
    check_model(before, embedder)
    with pytest.raises(StoreError, match="query_repeats: index 2, model 1"):
        check_model({**identity, "query_repeats": 2}, embedder)


def test_a_tokenizer_that_makes_no_tokens_is_refused(tmp_path: Path) -> None:
    base = build_model(tmp_path / "base", "bert")
    file = base / "tokenizer.json"
    dropping = {"type": "Replace", "pattern": {"Regex": "[ab ]"}, "content": ""}
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": dropping}))
    with pytest.raises(ValueError, match="gives no tokens for 'a b'"):
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
    with pytest.raises(ValueError, match=r"repeats every text; .*--query-repeats 2"):
        Embedder(base, device="cpu")


def test_a_tokenizer_that_knows_no_word_of_the_probe_is_fine(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    base = build_model(tmp_path / "base", "bert")
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "tea": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    words.save(str(base / "tokenizer.json"))
    kind = base / "tokenizer_config.json"
    kind.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}))
    assert Embedder(base, device="cpu").tokenize(["tea"]) == [[1, 3, 2]]


def test_an_instruction_that_leaves_one_token_is_taken(mistral: Path) -> None:
    once = Embedder(mistral, device="cpu", dtype="float32")
    repeating = Embedder(
        mistral, device="cpu", dtype="float32", conventions=replace(once.conventions, query_repeats=3, max_length=200)
    )
    bare = repeating.query_tokens([""], "Find it")[0]
    repeating.set_max_length(bare + 1)
    assert len(repeating.tokenize_queries(["x"], ["Find it"])[0]) == bare + 1
    repeating.encode_queries(["x"], "Find it")
    repeating.set_max_length(bare)
    with pytest.raises(ValueError, match=f"takes {bare} of {bare} tokens"):
        repeating.encode_queries(["x"], "Find it")


def test_texts_compared_with_their_like_are_written_once(repeating: Embedder) -> None:
    np.testing.assert_array_equal(repeating.encode_symmetric(TEXTS, ""), repeating.encode_passages(TEXTS))
    told = repeating.encode_symmetric(TEXTS, "Find the same")
    np.testing.assert_array_equal(told, repeating.encode_queries(TEXTS, "Find the same"))


def test_a_run_of_settings_that_are_gone_goes_on_if_it_did_not_use_them(config: TrainConfig, tmp_path: Path) -> None:
    file = tmp_path / "training.json"
    config.save(file)
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "twice": False}))
    assert TrainConfig.load(file) == config
    file.write_text(json.dumps({**values, "twice": True}))
    with pytest.raises(ValueError, match=r"does not know \(twice\); choose another --out"):
        TrainConfig.load(file)
