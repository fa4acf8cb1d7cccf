"""A linear map behind a model, exported or not, and the index that goes with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adapting import config_in, pairs_of, without_extras
from commands import write_lines
from texts import SENTENCES, TEXTS
from tiny_models import build_model

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.models.batches import unit_rows
from searchkit.models.embedder import Embedder
from searchkit.records import Document
from searchkit.training.adaptation.adapt import adapt
from searchkit.training.adaptation.linear_map import most_passages
from searchkit.training.adaptation.mapped import add_mapped, write_model
from searchkit.training.adaptation.vectors import vector_pairs
from searchkit.training.dataset import Example
from searchkit.training.export import export, unpack
from searchkit.training.files import read_json, write_json
from searchkit.training.layout import write_linear

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
WIDTH = 64


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(build_model(folder / "bert", "bert"), folder / "model", dtype="float32")
    return folder / "model"


@pytest.fixture
def matrix() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (np.eye(WIDTH) + 0.2 * rng.standard_normal((WIDTH, WIDTH))).astype(np.float32)


def check_mapped(model: Embedder, base: Embedder, matrix: np.ndarray) -> None:
    for encode in ("encode_passages", "encode_queries"):
        expected = unit_rows(getattr(base, encode)(TEXTS[:6]) @ matrix)
        np.testing.assert_allclose(getattr(model, encode)(TEXTS[:6]), expected, atol=1e-5)


def test_a_map_behind_a_map_behind_an_exported_model(exported: Path, matrix: np.ndarray, tmp_path: Path) -> None:
    base = Embedder(exported)
    write_linear(matrix, tmp_path / "map")
    write_model(base, tmp_path / "map", tmp_path / "one")
    write_model(Embedder(tmp_path / "one"), tmp_path / "map", tmp_path / "two")
    check_mapped(Embedder(tmp_path / "one"), base, matrix)
    check_mapped(Embedder(tmp_path / "two"), base, matrix @ matrix)
    names = [base.identity()["weights"], *(Embedder(tmp_path / n).identity()["weights"] for n in ("one", "two"))]
    assert len(set(names)) == 3
    assert (tmp_path / "two" / "model.onnx").stat().st_ino == (exported / "model.onnx").stat().st_ino, "not copied"


def test_an_exported_model_with_a_map_can_be_trained_on(exported: Path, matrix: np.ndarray, tmp_path: Path) -> None:
    write_linear(matrix, tmp_path / "map")
    write_model(Embedder(exported), tmp_path / "map", tmp_path / "one")
    unpack(tmp_path / "one", tmp_path / "back")
    check_mapped(Embedder(tmp_path / "back", device="cpu", dtype="float32"), Embedder(exported), matrix)
    export(tmp_path / "back", tmp_path / "again", dtype="float32")
    check_mapped(Embedder(tmp_path / "again"), Embedder(exported), matrix)


def test_sentence_transformers_reads_a_torch_model_with_a_map(
    embedder: Embedder, matrix: np.ndarray, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    write_linear(matrix, tmp_path / "map")
    write_model(embedder, tmp_path / "map", tmp_path / "one")
    check_mapped(Embedder(tmp_path / "one", device="cpu", dtype="float32"), embedder, matrix)
    theirs = SentenceTransformer(str(tmp_path / "one"), device="cpu").encode(TEXTS[:6], normalize_embeddings=True)
    np.testing.assert_allclose(theirs, unit_rows(embedder.encode_passages(TEXTS[:6]) @ matrix), atol=1e-5)


def test_only_a_linear_map_can_stand_beside_an_exported_model(
    exported: Path, matrix: np.ndarray, tmp_path: Path
) -> None:
    write_linear(matrix, tmp_path / "map")
    write_model(Embedder(exported), tmp_path / "map", tmp_path / "one")
    config = tmp_path / "one" / "2_Dense" / "config.json"
    write_json(config, {**read_json(config), "activation_function": "torch.nn.modules.activation.Tanh"})
    with pytest.raises(InputError, match="2_Dense is more than a linear map"):
        Embedder(tmp_path / "one")
    write_linear(matrix[:32], tmp_path / "narrow")
    write_model(Embedder(exported), tmp_path / "narrow", tmp_path / "two")
    with pytest.raises(InputError, match="takes vectors of 32 dimensions, but gets 64"):
        Embedder(tmp_path / "two")


@pytest.fixture
def engine(exported: Path, tmp_path: Path) -> Iterator[SearchEngine]:
    """Thirty notes, some deleted, and one of many passages."""
    with SearchEngine.create(tmp_path / "notes.index", model=exported, chunk_tokens=16, overlap=0) as engine:
        engine.add(Document(str(n), text.strip(), f"Note {n}", {"n": n}) for n, text in enumerate(TEXTS))
        engine.add([Document("long", " ".join(SENTENCES))])
        engine.delete(["3", "17"])
        yield engine


def test_the_new_index_is_as_if_the_new_model_had_embedded_it(
    engine: SearchEngine, matrix: np.ndarray, tmp_path: Path
) -> None:
    write_linear(matrix, tmp_path / "map")
    write_model(engine.embedder, tmp_path / "map", tmp_path / "model")
    for name in ("mapped", "embedded"):
        with SearchEngine.create(tmp_path / name, model=tmp_path / "model", chunk_tokens=16, overlap=0) as new:
            if name == "embedded":
                new.add(engine.documents())
            else:
                add_mapped(engine, new, matrix)
                add_mapped(engine, new, matrix)  # all is there
    with SearchEngine.open(tmp_path / "mapped") as mapped, SearchEngine.open(tmp_path / "embedded") as embedded:
        assert mapped.store.documents.checksum() == embedded.store.documents.checksum()
        ids = [document.id for document in engine.documents()]
        one, other = mapped.vectors_by_id(ids), embedded.vectors_by_id(ids)
        assert one.keys() == other.keys()
        for id in one:
            np.testing.assert_allclose(one[id], other[id], atol=1e-5)
        for query in ("Bread rises", "sun"):
            hits = [[hit.id for hit in each.search(query, k=5)] for each in (mapped, embedded)]
            assert hits[0] == hits[1]


# The vectors of pairs


def test_pairs_as_vectors(engine: SearchEngine) -> None:
    examples = [
        Example("Bread rises", f"Note 1 {TEXTS[1]}", positive_id="1"),
        Example("Salt lowers the freezing point", "whatever", positive_id="long"),
        Example("Bread rises", f"Note 11 {TEXTS[11]}", positive_id="11"),
        Example("tea", "a text from elsewhere"),
        Example("Bread rises", f"Note 1 {TEXTS[1]}", instruction="Find it", positive_id="1"),
    ]
    pairs = vector_pairs(engine, examples)
    alive = sum(len(rows) for rows in engine.vectors_by_id([str(n) for n in range(30)] + ["long"]).values())
    assert len(pairs.passages) == alive + 1
    np.testing.assert_allclose(pairs.passages[pairs.right[0]], engine.vectors_by_id(["1"])["1"][0], atol=1e-6)
    np.testing.assert_allclose(
        pairs.passages[pairs.right[3]], engine.embedder.encode_passages(["a text from elsewhere"])[0], atol=1e-6
    )
    own = engine.vectors_by_id(["long"])["long"]
    np.testing.assert_allclose(pairs.passages[pairs.right[1]], own[(own @ pairs.queries[1]).argmax()], atol=1e-6)
    assert len(pairs.neutral[1]) == len(own) - 1 > 2
    both = {pairs.right[0], *pairs.neutral[0].tolist()}  # documents 1 and 11
    assert len(both) == len(pairs.neutral[0]) + 1 == sum(map(len, engine.vectors_by_id(["1", "11"]).values()))
    assert {pairs.right[2], *pairs.neutral[2].tolist()} == both
    assert len(pairs.neutral[4]) == len(engine.vectors_by_id(["1"])["1"]) - 1
    assert pairs.groups.tolist() == [0, 1, 0, 2, 3]


def test_of_many_passages_the_right_the_near_and_some_others_are_taken(
    engine: SearchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("searchkit.training.adaptation.vectors.most_passages", lambda dim: 24)
    monkeypatch.setattr("searchkit.training.adaptation.vectors._HARD", 3)
    assert most_passages(384) > 7000
    pairs = vector_pairs(engine, [Example("Bread rises because", "x", positive_id="25")])
    assert 12 <= len(pairs.passages) <= 24
    own = engine.vectors_by_id(["25"])["25"]
    np.testing.assert_allclose(pairs.passages[pairs.right[0]], own[(own @ pairs.queries[0]).argmax()], atol=1e-6)
    near = engine.search("Bread rises because", k=3, mode="dense")
    best = np.sort(pairs.passages @ pairs.queries[0])[::-1]
    assert best[0] == pytest.approx(near[0].score, abs=1e-5)


# From pairs to the new index


@pytest.mark.parametrize("recipe", ["flat", "int8"])
def test_the_index_gets_its_recipe_and_width_back(
    recipe: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where codes alone are kept, documents are embedded again."""
    without_extras(monkeypatch)
    make_index(tmp_path / "notes.index", Embedder(exported, dim=32, force_dim=True), recipe)
    write_lines(tmp_path / "pairs.jsonl", pairs_of(TEXTS))
    report = adapt(config_in(tmp_path), force=True)
    assert report.kept
    with SearchEngine.open(tmp_path / "notes.index") as new:
        assert (new.dim, new.storage.plan.spelling) == (32, recipe)
        texts = [f"Note {n} {TEXTS[n].strip()}" for n in range(30)]
        rows = np.concatenate([new.vectors_by_id([str(n)])[str(n)] for n in range(30)])
        cosines = (new.embedder.encode_passages(texts) * rows).sum(1) / np.linalg.norm(rows, axis=1)
        assert cosines.min() > (0.9999 if recipe == "flat" else 0.999)


def make_index(folder: Path, model: Embedder | Path, recipe: str = "flat") -> None:
    with SearchEngine.create(folder, model=model) as engine:
        engine.add(Document(str(n), text.strip(), title=f"Note {n}") for n, text in enumerate(TEXTS))
        if recipe != "flat":
            engine.store_as(recipe, keep_vectors=False)


WITHOUT_EXTRAS = """
import sys

ABSENT = {"torch", "transformers", "accelerate", "onnx", "openai", "pydantic", "json_repair", "py3langid", "rensa"}

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from searchkit.training.adaptation import adapt
adapt.draw, adapt.out_of_domain = (lambda *_: None), (lambda _: 0.5)
from searchkit.cli.main import main
main(["adapt", "notes.index", "--pairs", "pairs.jsonl", "--held-out", "0.4", "--force"])
"""


def test_the_command_needs_nothing_of_the_extra_train(exported: Path, tmp_path: Path) -> None:
    make_index(tmp_path / "notes.index", exported)
    write_lines(tmp_path / "pairs.jsonl", pairs_of(TEXTS))
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "notes.index now uses" in done.stdout
