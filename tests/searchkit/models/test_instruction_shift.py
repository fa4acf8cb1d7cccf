"""Queries that their instruction shifts: what is added, what stays, and what an index says of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from texts import TEXTS
from tiny_models import build_model

from searchkit.binding import check_model, differences
from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.models.batches import unit_rows
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.models.instruction_shift import LEAST, SHIFT_FILE, save_shift
from searchkit.records import Document
from searchkit.tasks import get_task
from searchkit.training.adaptation.mapped import write_model
from searchkit.training.export import export, unpack
from searchkit.training.layout import write_linear

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
WIDTH, HIDDEN, TOLD = 64, 8, "Find the tea"


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "centre": (WIDTH,),
        "inner.weight": (HIDDEN, WIDTH),
        "inner.bias": (HIDDEN,),
        "outer.weight": (WIDTH, HIDDEN),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    export(build_model(folder / "bert", "bert"), folder / "model", dtype="float32")
    return folder / "model"


@pytest.fixture(scope="module")
def shifted(plain: Path, arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shifted") / "model"
    shutil.copytree(plain, folder)
    save_shift(arrays, folder)
    return folder


def moved(base: Embedder, arrays: dict[str, np.ndarray], instruction: str) -> np.ndarray:
    """Queries plus the shift, before any map and at any length."""
    told = base.encode_queries([instruction], "")[0] - arrays["centre"]
    hidden = np.maximum(arrays["inner.weight"] @ told + arrays["inner.bias"], 0)
    return np.asarray(base.encode_queries(TEXTS, "") + arrays["outer.weight"] @ hidden)


def test_the_instruction_shifts_queries_and_nothing_else(
    plain: Path, shifted: Path, arrays: dict[str, np.ndarray]
) -> None:
    base, model = Embedder(plain), Embedder(shifted)
    expected = unit_rows(moved(base, arrays, TOLD))
    np.testing.assert_allclose(model.encode_queries(TEXTS, TOLD), expected, atol=1e-6)
    assert np.abs(expected - base.encode_queries(TEXTS, "")).max() > 0.05
    np.testing.assert_array_equal(model.encode_queries(TEXTS, ""), base.encode_queries(TEXTS, ""))
    np.testing.assert_array_equal(model.encode_passages(TEXTS), base.encode_passages(TEXTS))
    assert model.query_tokens(TEXTS, TOLD) == base.query_tokens(TEXTS, ""), "it is not in front of the query"
    np.testing.assert_allclose(model.encode_symmetric(TEXTS, TOLD), expected, atol=1e-6)


def test_a_shift_of_next_to_nothing_is_none(plain: Path, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    base = Embedder(plain)
    length = np.linalg.norm(moved(base, arrays, TOLD) - base.encode_queries(TEXTS, ""), axis=1)[0]
    for factor, same in ((1.02, False), (0.98, True)):
        folder = tmp_path / str(factor)
        shutil.copytree(plain, folder)
        save_shift(arrays | {"outer.weight": arrays["outer.weight"] * np.float32(factor * LEAST / length)}, folder)
        told = Embedder(folder).encode_queries(TEXTS, TOLD)
        assert np.array_equal(told, base.encode_queries(TEXTS, "")) == same


def test_the_task_of_a_search_changes_nothing_for_the_built_in_model() -> None:
    model = Embedder(DEFAULT_MODEL)
    plain = model.encode_queries(TEXTS, "")
    for task in ("web", "scifact", "nfcorpus", "trec-covid"):
        np.testing.assert_array_equal(model.encode_queries(TEXTS, get_task(task).instruction), plain)
    assert np.abs(model.encode_queries(TEXTS, get_task("quora").instruction) - plain).max() > 0.05


def test_queries_and_passages_of_one_batch(plain: Path, shifted: Path, arrays: dict[str, np.ndarray]) -> None:
    base, model = Embedder(plain), Embedder(shifted)
    instructions = [("", TOLD, "Find bread")[n % 3] for n in range(len(TEXTS))]
    tokens = [*model.tokenize(TEXTS), *model.tokenize_queries(TEXTS, instructions)]
    rows = model.encode_tokens(tokens, [*[""] * len(TEXTS), *instructions])
    np.testing.assert_allclose(rows[: len(TEXTS)], base.encode_passages(TEXTS), atol=1e-6)
    for instruction in ("", TOLD, "Find bread"):
        which = [n for n, own in enumerate(instructions) if own == instruction]
        alone = model.encode_queries([TEXTS[n] for n in which], instruction)
        np.testing.assert_allclose(rows[len(TEXTS) :][which], alone, atol=1e-6)


def test_every_query_may_have_an_instruction_of_its_own(shifted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchkit.models.shifted_queries._MOST_KEPT", 3)
    model = Embedder(shifted)
    rows = model.encode_tokens(model.tokenize_queries(TEXTS, TEXTS), TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        np.testing.assert_allclose(Embedder(shifted).encode_queries([text], text)[0], row, atol=1e-6)


def test_a_query_under_two_instructions_is_computed_once(shifted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Embedder(shifted)
    expected = [model.encode_queries(["tea"], told)[0] for told in (TOLD, "Find bread", "")]
    pooled, computed = model.runtime.pooled, []  # type: ignore[attr-defined]

    def counted(batch: list[list[int]], conventions: object) -> np.ndarray:
        computed.extend(batch)
        return np.asarray(pooled(batch, conventions))

    monkeypatch.setattr(model.runtime, "pooled", counted)
    instructions = [TOLD, "Find bread", ""]
    rows = model.encode_tokens(model.tokenize_queries(["tea"] * 3, instructions), instructions)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert len(computed) == 1


def test_a_batch_too_large_for_memory_is_halved_with_its_shifts(shifted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.concatenate([Embedder(shifted).encode_queries([text], text) for text in TEXTS])
    model = Embedder(shifted)
    pooled = model.runtime.pooled  # type: ignore[attr-defined]

    def scarce(batch: list[list[int]], conventions: object) -> np.ndarray:
        if len(batch) > 2:
            raise MemoryError
        return np.asarray(pooled(batch, conventions))

    monkeypatch.setattr(model.runtime, "pooled", scarce)
    rows = model.encode_tokens(model.tokenize_queries(TEXTS, TEXTS), TEXTS)
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_the_shift_comes_before_a_map_beside_the_model(
    plain: Path, shifted: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    matrix = np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    write_linear(matrix, tmp_path / "map")
    write_model(Embedder(shifted), tmp_path / "map", tmp_path / "adapted")
    base, model = Embedder(plain), Embedder(tmp_path / "adapted")
    expected = moved(base, arrays, TOLD) @ matrix
    np.testing.assert_allclose(model.encode_queries(TEXTS, TOLD), unit_rows(expected), atol=1e-5)
    np.testing.assert_allclose(model.encode_passages(TEXTS), unit_rows(base.encode_passages(TEXTS) @ matrix), atol=1e-5)
    narrow = Embedder(tmp_path / "adapted", dim=16, force_dim=True)
    np.testing.assert_allclose(narrow.encode_queries(TEXTS, TOLD), unit_rows(expected[:, :16]), atol=1e-5)


def test_an_index_takes_the_model_with_and_without_a_shift(plain: Path, shifted: Path, tmp_path: Path) -> None:
    base, model = Embedder(plain), Embedder(shifted)
    assert "instruction_shift" not in base.identity()
    assert len(model.identity()["instruction_shift"]) == 64, "what is cached of queries depends on it"
    check_model(base.identity(), model)
    check_model(model.identity(), base)
    assert not differences(base.identity(), model.identity())
    with SearchEngine.create(tmp_path / "notes.index", model=plain) as engine:
        engine.add(Document(str(n), text) for n, text in enumerate(TEXTS))
    with SearchEngine.open(tmp_path / "notes.index", model=shifted) as engine:
        rows = model.encode_passages(TEXTS) @ model.encode_queries(["tea"], TOLD)[0]
        hits = engine.search("tea", instruction=TOLD, mode="dense", k=3)
        assert [hit.id for hit in hits] == [str(n) for n in np.argsort(-rows, kind="stable")[:3]]


def test_what_is_trained_further_reads_instructions_in_front(plain: Path, shifted: Path, tmp_path: Path) -> None:
    unpack(shifted, tmp_path / "back")
    assert not (tmp_path / "back" / SHIFT_FILE).exists()
    back = Embedder(tmp_path / "back", device="cpu", dtype="float32")
    np.testing.assert_allclose(
        back.encode_queries(TEXTS[:4], TOLD), Embedder(plain).encode_queries(TEXTS[:4], TOLD), atol=1e-5
    )


@pytest.mark.parametrize("blank", [" ", "\n\t", "\u200b"])
def test_a_blank_instruction_is_none(shifted: Path, blank: str) -> None:
    model = Embedder(shifted if blank.isspace() else "builtin")  # to whose tokenizer the last one is nothing
    np.testing.assert_array_equal(model.encode_queries(TEXTS, blank), model.encode_queries(TEXTS, ""))
    tokens = model.tokenize_queries(["tea"], [blank])
    np.testing.assert_array_equal(model.encode_tokens(tokens, [blank]), model.encode_queries(["tea"], ""))


def test_an_instruction_is_read_again_where_more_of_it_fits(shifted: Path) -> None:
    model, told = Embedder(shifted), "tea and bread and salt " * 4
    whole, length = model.encode_queries(["tea"], told), model.max_length
    model.set_max_length(16)
    cut = model.encode_tokens(model.tokenize_queries(["tea"], [told]), [told])
    assert np.abs(cut - whole).max() > 1e-3
    model.set_max_length(length)
    np.testing.assert_array_equal(model.encode_queries(["tea"], told), whole)


def test_an_instruction_may_be_as_long_as_a_text(shifted: Path) -> None:
    told = "tea tea tea"
    model = Embedder(shifted, max_length=max(8, Embedder(shifted).passage_tokens([told])[0]))
    model.encode_queries(["tea"], told)
    with pytest.raises(InputError, match="shorten it"):
        model.encode_queries(["tea"], f"{told} tea")
    model = Embedder(shifted, max_length=16)
    with pytest.raises(InputError, match=r"the instruction takes \d+ of 16 tokens; shorten it"):
        model.encode_queries(["tea"], "tea " * 40)


def test_a_file_of_something_else_is_refused(shifted: Path, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    shutil.copytree(shifted, tmp_path / "model")
    file = tmp_path / "model" / SHIFT_FILE
    for wrong in (
        {name: array for name, array in arrays.items() if name != "inner.bias"},
        {**arrays, "centre": arrays["centre"][:32]},
        {**arrays, "centre": arrays["centre"].astype(np.float16)},
    ):
        save_file(wrong, str(file))
        with pytest.raises(InputError, match=rf"{SHIFT_FILE} holds .*; expected float32 .*Copy the model's folder"):
            Embedder(tmp_path / "model")
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be loaded as a model"):
        Embedder(tmp_path / "model")
