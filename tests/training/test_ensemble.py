from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from texts import SENTENCES, TEXTS
from tiny_models import build_model, build_tokenizer
from torch import Tensor

from searchkit.cli.main import main
from searchkit.models.embedder import Embedder
from searchkit.training.batches import Batch
from searchkit.training.config import TrainConfig
from searchkit.training.dataset import Example
from searchkit.training.ensemble import Projection, summed_similarities
from searchkit.training.teacher import Teacher, fit_teachers, teaching_loss
from searchkit.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def unit(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, dtype=torch.float64, generator=generator), dim=1)


def plain_sum(teachers: list[Tensor]) -> np.ndarray:
    """The formula of the docstring, in numpy."""
    others = ~np.eye(len(teachers[0]), dtype=bool)
    cosines = [rows.numpy() @ rows.numpy().T for rows in teachers]
    total = sum((each - each[others].mean()) / each[others].std() for each in cosines)
    return total / total[others].std() * cosines[0][others].std()


def test_similarities_are_standardised_and_added() -> None:
    teachers = [unit(7, 16, seed=1), unit(7, 24, seed=2), F.normalize(0.1 * unit(7, 8, seed=3) + 1, dim=1)]
    others = ~np.eye(7, dtype=bool)
    found = summed_similarities(teachers).numpy()
    np.testing.assert_allclose(found[others], plain_sum(teachers)[others], rtol=1e-10)
    one = summed_similarities(teachers[:1]).numpy()
    cosines = (teachers[0] @ teachers[0].T).numpy()
    spread = (one - cosines)[others]
    np.testing.assert_allclose(spread, spread[0], rtol=1e-10)  # of one teacher, they are its own but for a constant


@pytest.mark.parametrize("apart", [[False] * 3, [True, False, True]])
def test_what_several_teachers_teach_is_the_plain_formula(apart: list[bool]) -> None:
    rows, taught = unit(8, 16, seed=1).requires_grad_(), unit(8, 16, seed=2)
    teachers = [unit(8, 16, seed=3), unit(8, 24, seed=4)]
    found = teaching_loss(rows, taught, torch.tensor(apart), weight=3.0, neighbours=0.7, teachers=teachers)
    alone = [i for i, left_out in enumerate(apart) if left_out]
    rest = [i for i in range(8) if i not in alone]
    cosines = (rows.detach() * taught).sum(1).numpy()
    expected = 3 * (1 - cosines[rest]).mean() + 2 * (1 - cosines[alone]).sum() / 8
    wanted = plain_sum([each[rest] for each in teachers]) / 0.05
    learnt = (rows[rest] @ rows[rest].T).detach().numpy() / 0.05
    for i in range(len(rest)):
        p, q = (np.delete(side[i], i) for side in (wanted, learnt))
        p, q = (side - np.log(np.exp(side).sum()) for side in (p, q))
        expected += 0.7 * (np.exp(p) * (p - q)).sum() / len(rest)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    (gradient,) = torch.autograd.grad(found, rows)
    assert gradient.abs().max() > 0


def test_a_projection_keeps_the_summed_similarities_and_starts_near_the_student() -> None:
    shared = unit(400, 12, seed=1)
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    student = F.normalize(F.pad(shared, (0, 4)), dim=1) @ turn
    teachers = [shared, F.normalize(shared + 0.3 * unit(400, 12, seed=3), dim=1)]
    projection = Projection(teachers, student)
    rows = projection(teachers).double()
    assert rows.shape == (400, 16)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(400, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert (rows * student).sum(1).mean() > 0.9  # another rotation would be nowhere near
    others = ~np.eye(400, dtype=bool)
    kept = np.corrcoef((rows @ rows.T).numpy()[others], plain_sum(teachers)[others])[0, 1]
    assert kept > 0.97
    with pytest.raises(ValueError, match="at least two texts"):
        Projection(teachers, student[:5])


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of another family and width."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("models") / "wide"
    BertModel(
        BertConfig(vocab_size=512, hidden_size=96, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96)
    ).save_pretrained(folder)
    build_tokenizer(folder)
    return folder


@pytest.fixture
def taught(config: TrainConfig, mistral: Path, other: Path) -> TrainConfig:
    return replace(
        config, sources=(f"{config.sources[0]}@kept",), teacher=(str(mistral), str(other)), learning_rate=1e-3
    )


def losses(config: TrainConfig) -> list[float]:
    return [loss for _, loss in train(config).losses]


def test_vectors_that_are_kept_teach_what_new_ones_do(taught: TrainConfig, tmp_path: Path) -> None:
    kept = replace(taught, teacher_vectors=str(tmp_path / "vectors"))
    new = losses(replace(taught, out=str(tmp_path / "new")))
    first = losses(replace(kept, out=str(tmp_path / "first")))
    sizes = {file: file.stat().st_size for file in (tmp_path / "vectors").rglob("*") if file.is_file()}
    again = losses(replace(kept, out=str(tmp_path / "again")))
    assert first == again
    np.testing.assert_allclose(first, new, rtol=0.02, atol=1e-3)  # they are float16
    assert {file: file.stat().st_size for file in sizes} == sizes, "nothing is embedded twice"


def test_a_resumed_run_of_several_teachers_ends_where_an_unbroken_one_does(taught: TrainConfig, tmp_path: Path) -> None:
    taught = replace(taught, checkpoint_every=3, teacher_vectors=str(tmp_path / "vectors"))
    unbroken = losses(replace(taught, out=str(tmp_path / "unbroken")))

    class Stop(Exception):
        pass

    def stop(report, planned):  # type: ignore[no-untyped-def]
        if report.steps == 5:
            raise Stop

    with pytest.raises(Stop):
        train(taught, on_step=stop)
    np.testing.assert_allclose(losses(taught), unbroken, rtol=1e-5)
    one, two = (Embedder(folder, device="cpu", dtype="float32") for folder in (tmp_path / "unbroken", taught.out))
    np.testing.assert_allclose(one.encode_passages(TEXTS), two.encode_passages(TEXTS), atol=1e-5)


def test_one_teacher_in_a_list_is_that_teacher(config: TrainConfig, mistral: Path, tmp_path: Path) -> None:
    alone = losses(replace(config, teacher=str(mistral), out=str(tmp_path / "alone"), max_steps=3))
    listed = losses(replace(config, teacher=(str(mistral),), out=str(tmp_path / "listed"), max_steps=3))
    assert alone == listed


def test_a_student_comes_to_what_its_teachers_agree_on(tmp_path: Path, pairs: Path, other: Path) -> None:
    base = build_model(tmp_path / "base", "bert")
    config = TrainConfig(
        sources=(f"{pairs}@kept",), base=str(base), out=str(tmp_path / "student"), epochs=25, batch_size=5, chunk=64,
        learning_rate=3e-3, teacher=(str(base), str(other)), contrast=0, lora_rank=0, precision="float32",
    )  # fmt: skip
    train(config)
    wanted = plain_sum([
        torch.from_numpy(Embedder(name, device="cpu", dtype="float32").encode_passages(SENTENCES)).double()
        for name in config.teachers
    ])  # fmt: skip
    others = ~np.eye(len(SENTENCES), dtype=bool)
    near = []
    for name in (str(base), config.out):
        rows = Embedder(name, device="cpu", dtype="float32").encode_passages(SENTENCES)
        near.append(np.corrcoef((rows @ rows.T)[others], wanted[others])[0, 1])
    assert near[1] > near[0] + 0.05


def test_where_queries_are_is_told_by_all_teachers(mistral: Path, other: Path) -> None:
    student = Embedder(mistral, device="cpu", dtype="float32")
    teachers = [Teacher(str(name), device="cpu", max_length=64, follows=False) for name in (mistral, other)]
    examples = [Example(text[:15], text) for text in SENTENCES]
    fitted = fit_teachers(teachers, student, examples, seed=0)
    rows = fitted.query_rows([example.query for example in examples])
    assert rows.shape == (len(examples), student.dim)
    taught = fitted.teach(Batch(tuple(examples), ((),) * len(examples)), [True] * len(examples))
    np.testing.assert_allclose(taught.rows[: len(examples)], rows, atol=1e-6)
    assert [each.shape[1] for each in taught.teachers] == [64, 96]


def test_the_command_takes_several_teachers(pairs: Path, mistral: Path, other: Path, tmp_path: Path) -> None:
    words = ["train", str(pairs), "--base", str(mistral), "--out", str(tmp_path / "out"), "--max-steps", "1"]
    words += ["--teacher", str(mistral), "--teacher", str(other), "--teacher-vectors", str(tmp_path / "vectors")]
    words += ["--batch-size", "5", "--max-length", "64", "--precision", "float32"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "out" / "training.json").read_text())
    assert saved["teacher"] == [str(mistral), str(other)]
    assert TrainConfig.load(tmp_path / "out" / "training.json").teachers == (str(mistral), str(other))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"--teacher {mistral} --teacher {other} --teacher-vectors" in card.replace("\n", " ")
    assert any((tmp_path / "vectors").rglob("rows.f16"))
    twice = CliRunner().invoke(main, [*words[:3], str(mistral), "--out", "x", "--teacher", "a", "--teacher", "a"])
    assert twice.exit_code == 1
    assert "names one twice" in twice.output


def test_vectors_need_a_teacher(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="there is no teacher to keep vectors of"):
        replace(config, teacher_vectors="somewhere")
