"""`searchkit check`: is an index sound, and if not, make it so."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from searchkit.cli.options import INDEX, format_option, model_options, note


@click.command()
@click.argument("index", type=INDEX)
@click.option("--repair", "mend", is_flag=True, help="Make anew what can be, from what is sound.")
@format_option
@model_options
def check(index: Path, mend: bool, output: str, **how: Any) -> None:
    """Verify every part of INDEX; exit code 1 if one is damaged.

    --repair makes vectors anew from what is kept of them or by the model, and words from the documents. Documents that
    are damaged themselves are taken out and written to INDEX.lost.jsonl.

    \b
        searchkit check papers.index
        searchkit check papers.index --repair
    """
    from searchkit.check import LEFT_OVER
    from searchkit.check import check as verify
    from searchkit.repair import Repair, repair

    report = Repair(findings=verify(index))
    if mend and not all(finding.ok and finding.part != LEFT_OVER for finding in report.findings):
        report = repair(index, **how)
    sound = all(finding.ok for finding in report.findings)
    if output == "json":
        parts = [{**asdict(finding), "ok": finding.ok} for finding in report.findings]
        found = {"index": str(index), "sound": sound, "parts": parts, "repaired": report.done, "lost": report.lost}
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        for done in report.done:
            click.echo(f"repaired  {done}")
        width = max(len(finding.part) for finding in report.findings)
        for finding in report.findings:
            state = f"damaged: {finding.damage}" if finding.damage else "ok"
            click.echo(f"{finding.part:<{width}}  {state}" + (f" ({finding.note})" if finding.note else ""))
    if report.lost:
        note(
            f"{len(report.lost)} documents could not be repaired and were taken out; what is left of them is in "
            f"{report.file}. Add them again: searchkit add {index} CORPUS"
        )
    if not sound:
        if not mend:
            note(f"repair it with: searchkit check {index} --repair")
        raise SystemExit(1)
