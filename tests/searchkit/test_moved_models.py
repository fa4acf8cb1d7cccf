"""An index finds its model where both were moved or copied together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_models import build_model

from searchkit import binding
from searchkit.binding import located
from searchkit.engine import SearchEngine
from searchkit.errors import StoreError
from searchkit.models.embedder import Embedder
from searchkit.records import Document
from searchkit.remote.places import stored_model


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("models") / "other", "mistral", seed=1)


def built(home: Path, source: Path, place: str) -> Path:
    """An index in a folder, with a model at a place in the same folder."""
    index, model = home / "papers.index", home / place
    inside = model.parent == index
    at_first = shutil.copytree(source, home / "model" if inside else model)
    with SearchEngine.create(index, model=at_first) as engine:
        engine.add([Document("1", "Tea keeps you awake."), Document("2", "A nap does not.")])
        if inside:
            at_first.rename(model)
    return index


def searched(index: Path) -> str:
    """Search an index, and return where its model was found."""
    with SearchEngine.open(index) as engine:
        assert [hit.id for hit in engine.search("Tea keeps you awake.", k=1, mode="dense")] == ["1"]
        assert engine.embedder.name == engine.settings["model"]["model"] == (stored_model(index) or {})["model"]
        return engine.embedder.name


@pytest.mark.parametrize("place", ["papers.adapted/model", "my-embedder", "papers.index/model"])
def test_a_model_inside_or_beside_its_index_moves_with_it(tmp_path: Path, mistral: Path, place: str) -> None:
    index = built(tmp_path / "home", mistral, place)
    assert searched(index) == str(tmp_path / "home" / place)
    (tmp_path / "home").rename(tmp_path / "moved")
    index = tmp_path / "moved" / "papers.index"
    assert searched(index) == str(tmp_path / "moved" / place)
    with SearchEngine.open(index, writable=True) as engine:
        engine.add([Document("3", "Green tea is steamed.")])
    assert searched(index) == str(tmp_path / "moved" / place)


def test_a_copy_has_its_own_model(tmp_path: Path, mistral: Path, other: Path) -> None:
    built(tmp_path / "home", mistral, "my-embedder")
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    assert searched(tmp_path / "copy" / "papers.index") == str(tmp_path / "copy" / "my-embedder")
    shutil.rmtree(tmp_path / "home" / "my-embedder")
    shutil.copytree(other, tmp_path / "home" / "my-embedder")
    assert searched(tmp_path / "copy" / "papers.index") == str(tmp_path / "copy" / "my-embedder")
    with SearchEngine.open(tmp_path / "home" / "papers.index") as engine, pytest.raises(StoreError, match="differs"):
        engine.search("tea")


def test_another_model_of_the_same_name_is_not_taken(tmp_path: Path, mistral: Path, other: Path) -> None:
    index = built(tmp_path / "home", mistral, "models/model")
    moved = tmp_path / "moved" / "papers.index"
    moved.parent.mkdir()
    index.rename(moved)
    shutil.copytree(other, moved.parent / "model")
    assert searched(moved) == str(tmp_path / "home" / "models" / "model")
    (tmp_path / "home").rename(tmp_path / "gone")
    with SearchEngine.open(moved) as engine, pytest.raises(StoreError, match="If the model has moved, name its folder"):
        engine.search("tea")
    shutil.rmtree(moved.parent / "model")
    (moved.parent / "model").mkdir()
    for modules in ("{", "[1]", "[{}]", '[{"type": 1}]'):  # of another program
        (moved.parent / "model" / "modules.json").write_text(modules)
        with SearchEngine.open(moved) as engine, pytest.raises(StoreError, match="If the model has moved, name its"):
            engine.search("tea")


def test_where_nothing_was_moved_nothing_is_compared(
    tmp_path: Path, mistral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = built(tmp_path, mistral, "papers.adapted/model")
    monkeypatch.setattr(binding, "fingerprint", None)
    assert searched(index) == str(tmp_path / "papers.adapted" / "model")


def test_an_adapter_is_found_from_any_folder(tmp_path: Path, mistral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModel

    home = tmp_path / "home"
    base = shutil.copytree(mistral, home / "base")
    model = peft.get_peft_model(AutoModel.from_pretrained(base), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)
    model.save_pretrained(home / "my-adapter")
    monkeypatch.chdir(home)
    with SearchEngine.create("papers.index", model=Embedder("base", adapter="my-adapter", dtype="float32")) as engine:
        engine.add([Document("1", "Tea keeps you awake."), Document("2", "A nap does not.")])
    monkeypatch.chdir(tmp_path)
    assert searched(home / "papers.index") == str(base)
    home.rename(tmp_path / "moved")
    with SearchEngine.open(tmp_path / "moved" / "papers.index") as engine:
        assert engine.embedder.adapter == str(tmp_path / "moved" / "my-adapter")


def test_where_one_may_not_look_there_is_no_model(tmp_path: Path) -> None:
    identity = {"model": "/" + "deep/" * 1000 + "model", "adapter": None, "weights": "0"}
    assert located(identity, tmp_path) == identity  # a path that is too long fails as one that may not be read
