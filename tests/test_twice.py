"""Models whose tokenizer says every text twice: what they see, where texts are cut, what else can load them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXTS, build_model

from searchkit.corpus import Document
from searchkit.embedder import Embedder
from searchkit.engine import SearchEngine
from searchkit.training.config import TrainConfig
from searchkit.training.model import lay_out, prepare, save

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module", params=["bert", "mistral"])
def twice(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp(request.param)
    base = build_model(folder / "base", request.param)
    attention = "causal" if request.param == "bert" else None
    config = TrainConfig(
        sources=("none",), base=str(base), out="out", attention=attention, pooling="weighted-mean", twice=True,
        max_length=24,
    )  # fmt: skip
    lay_out(config, folder / "work")
    return prepare(config, folder / "work", device="cpu")


def bare(embedder: Embedder, text: str) -> list[int]:
    return list(embedder.runtime.tokenizer.encode(text, add_special_tokens=False).ids)


def test_the_model_reads_the_text_twice_between_its_marks(twice: Embedder) -> None:
    ids = bare(twice, TEXTS[0])[: 24 - twice.special_tokens]
    before, between, after = twice.frame
    assert ids != ids[: len(ids) // 2] * 2
    assert twice.tokenize([TEXTS[0]]) == [[*before, *ids, *between, *ids, *after]]
    stops = [stop for _, stop in twice.offsets(TEXTS[0])]
    assert stops == sorted(stops), "a text is cut into passages by its own tokens, each once"


def test_a_long_text_is_cut_before_it_is_repeated(twice: Embedder) -> None:
    tokens = twice.tokenize(["tea " * 100])[0]
    room = 24 - twice.special_tokens
    assert len(tokens) == 2 * room + twice.special_tokens
    with pytest.raises(ValueError, match=r"max_length is 200; .* takes 8 to 12"):  # of 256 positions
        twice.limit(200)


def test_the_length_that_is_trained_on_fits_the_positions(tmp_path: Path) -> None:
    base = build_model(tmp_path / "base", "bert")
    config = TrainConfig(sources=("none",), base=str(base), out="out", attention="causal", twice=True, max_length=512)
    lay_out(config, tmp_path / "work")
    embedder = prepare(config, tmp_path / "work", device="cpu")
    assert embedder.max_length == embedder.longest < 256
    assert len(embedder.tokenize(["tea " * 400])[0]) <= 256
    assert embedder.encode_passages(["tea " * 400]).shape == (1, embedder.dim)


def test_the_second_time_every_token_has_seen_the_last_one(twice: Embedder) -> None:
    import torch

    ids = [torch.tensor(twice.tokenize([text])) for text in ("tea is hot", "tea is old")]
    runtime = twice.runtime
    with torch.inference_mode():
        one, other = (runtime.model(input_ids=row).last_hidden_state[0] for row in ids)  # type: ignore[attr-defined]
    first = len(twice.frame[0])
    again = first + len(bare(twice, "tea is hot")) + len(twice.frame[1])
    assert torch.allclose(one[first], other[first], atol=1e-6)
    assert not torch.allclose(one[again], other[again], atol=1e-3)


def test_saved_it_gives_the_same_vectors_here_and_in_sentence_transformers(twice: Embedder, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    attention = "causal" if "bert" in str(twice.folder) else None
    texts = [*TEXTS, "tea " * 100]
    expected = twice.encode_passages(texts)
    save(twice, tmp_path / "out", card="", default_instruction=None, dims=(), attention=attention)
    loaded = Embedder(tmp_path / "out", device="cpu", dtype="float32")
    assert loaded.frame == twice.frame
    np.testing.assert_allclose(loaded.encode_passages(texts), expected, atol=1e-5)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, expected, atol=1e-4)
    np.testing.assert_allclose(twice.encode_passages(texts), expected, atol=1e-6)  # saving changed nothing here


def test_passages_of_a_long_document_cover_it_once(twice: Embedder, tmp_path: Path) -> None:
    words = " ".join(f"word{number}" for number in range(60))
    with SearchEngine.create(tmp_path / "index", model=twice, overlap=0) as engine:
        report = engine.add([Document("one", words)])
        passages = engine.store.passages(range(report.passages)).values()
    assert len(passages) > 1
    assert "".join("".join(passage.text.split()) for passage in passages) == "".join(words.split())


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    base = build_model(tmp_path / "base", "bert")
    file = base / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
    config = TrainConfig(sources=("none",), base=str(base), out="out", twice=True)
    with pytest.raises(ValueError, match="expected TemplateProcessing; train without --twice"):
        lay_out(config, tmp_path / "work")


def test_a_tokenizer_that_makes_no_tokens_is_refused(tmp_path: Path) -> None:
    base = build_model(tmp_path / "base", "bert")
    file = base / "tokenizer.json"
    dropping = {"type": "Replace", "pattern": {"Regex": "[ab ]"}, "content": ""}
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": dropping}))
    with pytest.raises(ValueError, match="makes no tokens of 'a b'"):
        Embedder(base, device="cpu")
