"""Replacing an index by the adapted one: what is checked before the work, and the exchange after it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, MissingExtraError
from searchkit.evaluation.evaluate import judged_queries
from searchkit.indexer.files import LOCK, exchange
from searchkit.models.remote.address import is_remote
from searchkit.training.adaptation.report import AdaptReport, read_report, write_report
from searchkit.training.files import digest, entries, remove
from searchkit.training.stages import FILE as STAGES

if TYPE_CHECKING:
    from pathlib import Path

    from searchkit.records import Judgements
    from searchkit.training.adaptation.config import AdaptConfig

MODEL, AFTER, BEFORE, REPORT = "model", "after.index", "before.index", "report.json"

# What a run needs, in the order of its stages, and the extra that brings it.
_NEEDED = {
    "head": (("scipy",), "eval"),
    "all": (("torch", "transformers", "accelerate", "onnx", "onnxscript", "scipy"), "train"),
}


def check(config: AdaptConfig, judgements: Judgements | None, *, install: bool) -> None:
    """Find what would otherwise end a run only after a language model was paid or a model trained.

    Args:
        config: The run.
        judgements: The user's own, if any.
        install: The new index may replace the old one.

    Raises:
        MissingExtraError: A library is missing.
        InputError: The folder holds something else or is on another file system than the index, or the index, its model
            and the judgements do not belong together.
    """
    names, extra = _NEEDED[config.train]
    if missing := next((name for name in names if find_spec(name) is None), None):
        raise MissingExtraError(f"adapting a model needs {missing}: pip install 'searchkit[{extra}]'", name=missing)
    out = config.out.resolve()
    there = entries(out) - {LOCK}
    if (out.exists() and not out.is_dir()) or (there and STAGES not in there):
        raise InputError(f"{out} exists and holds no run of adapt; choose another --out")
    if _was_installed(out):
        # a later round is built on this model, and its before.index may be the only copy of an index
        raise InputError(
            f"{out} holds a finished run, whose model and before.index may still be in use; choose another --out, or "
            "delete that folder if nothing uses its model any more"
        )
    with SearchEngine.open(config.index) as engine:
        if engine.settings.get("model") is None:
            raise InputError(
                f"{config.index} holds vectors that its users made, and has no model to adapt; "
                "adapt an index that was built with a model"
            )
        model = engine.settings["model"]
        if is_remote(model["model"]):
            raise InputError(
                f"{config.index} was built with {model['model']}, whose weights are on its server; adapt an index of "
                "the same model in a local folder"
            )
        if model["adapter"]:
            raise InputError(
                f"{config.index} was built with {model['model']} and the adapter {model['adapter']}; index it with a "
                "folder that holds both merged (searchkit train writes one), and adapt that"
            )
        if judgements:
            judged_queries(engine, judgements)
    if install:
        _check_file_system(config.index.resolve(), out)


def _check_file_system(index: Path, out: Path) -> None:
    """Raise InputError unless a folder in `out` and the index can be renamed to each other."""
    existing = next(folder for folder in (out, *out.parents) if folder.exists())
    if len({folder.stat().st_dev for folder in (existing, index, index.parent)}) > 1:
        raise InputError(
            f"{out} and {index} are on different file systems, and the new index replaces the old one by renaming; "
            "choose an --out on the file system of the index, or leave the index alone with --keep-index"
        )


def request(config: AdaptConfig, judgements: Judgements | None) -> str:
    """A checksum of what a run was asked for: its pairs, judgements and settings, without the places of files."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("index", "out")}
    for name in ("pairs", "general"):
        settings[name] = [digest(file) if file.exists() else "" for file in settings[name]]
    judging = None
    if judgements is not None:
        queries = sorted((query.id, query.text, query.instruction or "") for query in judgements.queries)
        judging = [queries, judgements.qrels, judgements.instruction, judgements.drop_self]
    return hashlib.sha256(json.dumps([settings, judging], sort_keys=True).encode()).hexdigest()


def adapted(config: AdaptConfig, judgements: Judgements | None) -> AdaptReport | None:
    """The report of a run whose model the index already searches with; None if there is no such run.

    Raises:
        InputError: The report is lost, or that run was asked for something else.
    """
    out = config.out.resolve()
    with SearchEngine.open(config.index) as engine:
        model = engine.settings.get("model")
        if model is None or model["model"] != str(out / MODEL):
            return None
    if (out / AFTER).exists():  # stopped between the exchange and the renaming
        (out / AFTER).rename(out / BEFORE)
    try:
        report = read_report(out / REPORT)
    except (OSError, InputError) as error:
        raise InputError(
            f"{config.index} already searches with {out / MODEL}, but its report is lost: {error}; "
            "to adapt it again, choose another --out"
        ) from error
    if report.request not in ("", request(config, judgements)):  # reports of earlier versions do not have it
        raise InputError(
            f"{config.index} already searches with {out / MODEL}, which was made from other pairs, judgements or "
            "settings; for another round, choose another --out"
        )
    report.kept = True
    write_report(out / REPORT, report)
    return report


def _was_installed(out: Path) -> bool:
    """Whether an index was replaced by the result of the run in a folder."""
    try:
        return read_report(out / REPORT).kept
    except (OSError, InputError):
        return (out / BEFORE).exists()


def put_in_place(index: Path, out: Path, documents: str) -> None:
    """Replace an index that nobody is writing to by the new one, and keep the old one.

    Args:
        index: The old index.
        out: The folder with the new one.
        documents: The checksum of the documents in the new one.

    Raises:
        InputError: The old one holds other documents by now.
    """
    remove(out / BEFORE)
    with SearchEngine.open(index, writable=True) as engine:
        if engine.store.documents.checksum() != documents:
            raise InputError(
                f"{index} has changed since its documents were indexed with the new model; run the same command again"
            )
        exchange(out / AFTER, index)
    (out / AFTER).rename(out / BEFORE)
