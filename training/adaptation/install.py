"""Where an adapted model goes: what has to be so before the work, the exchange after it, and how that is seen later."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, MissingExtraError
from searchkit.evaluation.evaluate import judged_queries
from searchkit.indexer.files import LOCK, exchange
from searchkit.training.adaptation.report import AdaptReport, read_report, write_report
from searchkit.training.stages import FILE as STAGES
from searchkit.training.stages import remove

if TYPE_CHECKING:
    from pathlib import Path

    from searchkit.records import Judgements
    from searchkit.training.adaptation.config import AdaptConfig

MODEL, AFTER, BEFORE, REPORT = "model", "after.index", "before.index", "report.json"

# By the stages in their order: training, exporting, measuring.
_NEEDED = ("torch", "transformers", "accelerate", "onnx", "onnxscript", "scipy")


def check(config: AdaptConfig, judgements: Judgements | None, *, install: bool) -> None:
    """Find what would end a run only after a language model was paid or a model trained.

    Args:
        config: The run.
        judgements: What judges the result, if it is given.
        install: The new index may come in the place of the old one.

    Raises:
        ImportError: A library is missing.
        ValueError: The folder holds something else or lies where the index cannot be moved from, or the index, its
            model and the judgements do not go together.
    """
    if missing := next((name for name in _NEEDED if find_spec(name) is None), None):
        raise MissingExtraError(f"adapting a model needs {missing}: pip install 'searchkit[train]'", name=missing)
    out = config.out.resolve()
    there = {entry.name for entry in out.iterdir()} - {LOCK} if out.is_dir() else set()
    if (out.exists() and not out.is_dir()) or (there and STAGES not in there):
        raise InputError(f"{out} is there and holds no such run; name another --out")
    with SearchEngine.open(config.index) as engine:
        model = engine.settings["model"]
        if model["adapter"]:
            raise InputError(
                f"{config.index} was built with {model['model']} and the adapter {model['adapter']}; index it with a "
                "folder that holds both merged (searchkit train writes one), and adapt that"
            )
        if judgements:
            judged_queries(engine, judgements)
    if install:
        _check_place(config.index.resolve(), out)


def _check_place(index: Path, out: Path) -> None:
    """Raise unless a folder in `out` can change places with the index."""
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    if len({folder.stat().st_dev for folder in (there, index, index.parent)}) > 1:
        raise InputError(
            f"{out} and {index} are on different file systems, and the new index takes the old one's place by a "
            "change of names; name an --out on that of the index, or leave the index alone with --keep-index"
        )


def adapted(config: AdaptConfig) -> AdaptReport | None:
    """The report, when the index already searches with the model of that folder; ValueError when it is damaged."""
    out = config.out.resolve()
    with SearchEngine.open(config.index) as engine:
        if engine.settings["model"]["model"] != str(out / MODEL):
            return None
    if (out / AFTER).exists():  # stopped between the exchange and this
        (out / AFTER).rename(out / BEFORE)
    try:
        report = read_report(out / REPORT)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{config.index} searches with {out / MODEL} already, but its report is lost: {error}; "
            "for another round, name another --out"
        ) from error
    report.kept = True
    write_report(out / REPORT, report)
    return report


def install(index: Path, out: Path, documents: str) -> None:
    """Put the new index in the place of the old one, which nobody may be writing to, and keep that.

    Args:
        index: The old one.
        out: The folder that holds the new one.
        documents: The checksum of those that the new one holds.

    Raises:
        ValueError: The old one holds others by now.
    """
    remove(out / BEFORE)
    with SearchEngine.open(index, writable=True) as engine:
        if engine.store.documents.checksum() != documents:
            raise InputError(
                f"{index} has been changed since its documents were indexed with the new model; run the same command "
                "again"
            )
        exchange(out / AFTER, index)
    (out / AFTER).rename(out / BEFORE)
