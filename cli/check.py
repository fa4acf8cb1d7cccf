"""`searchkit check`: verify an index, and repair it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from searchkit.cli.options import ModelOptions, model_options, text_or_json
from searchkit.cli.output import count, note, print_json, say
from searchkit.cli.types import INDEX


@click.command()
@click.argument("index", type=INDEX)
@click.option("--repair", "do_repair", is_flag=True, help="Rebuild damaged parts from intact ones.")
@text_or_json
@model_options
def check(index: Path, do_repair: bool, output: str, model: ModelOptions) -> None:
    """Verify every part of INDEX against its checksums. Exit code 1: a part is damaged.

    --repair rebuilds vectors from stored copies or with the model, and the lexical index from the documents. Damaged
    documents cannot be rebuilt: they are removed and written to INDEX.lost.jsonl.

    \b
        searchkit check papers.index
        searchkit check papers.index --repair
    """
    from searchkit.check import LEFT_OVER
    from searchkit.check import check as verify
    from searchkit.repair import Repair, repair

    report = Repair(findings=verify(index))
    if do_repair and not all(finding.ok and finding.part != LEFT_OVER for finding in report.findings):
        report = repair(
            index,
            model=model.model,
            adapter=model.adapter,
            device=model.device,
            dtype=model.dtype,
            threads=model.threads,
        )
    sound = all(finding.ok for finding in report.findings)
    if output == "json":
        parts = [{**asdict(finding), "ok": finding.ok} for finding in report.findings]
        print_json(
            {
                "index": str(index),
                "sound": sound,
                "parts": parts,
                "repaired": report.done,
                "lost": report.lost,
                "without_vectors": report.vectorless,
            },
            indent=None,
        )
    else:
        for done in report.done:
            say(f"repaired  {done}")
        width = max(len(finding.part) for finding in report.findings)
        for finding in report.findings:
            state = f"damaged: {finding.damage}" if finding.damage else "ok"
            say(f"{finding.part:<{width}}  {state}" + (f" ({finding.note})" if finding.note else ""))
    if report.lost:
        note(
            f"{count(len(report.lost), 'document')} could not be repaired and left the index; what remains of them is "
            f"in {report.file}. Add them again: searchkit add {index} CORPUS"
        )
    if not sound:
        if not do_repair:
            note(f"repair it with: searchkit check {index} --repair")
        raise SystemExit(1)
