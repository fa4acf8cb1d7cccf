"""A comparison as JSON with the texts of documents, and as a single HTML file that opens offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from searchkit.evaluation.comparison import Comparison
from searchkit.records import Document, Qrels, Query

DOCUMENTS = 3
"""Documents of a query shown before and after."""

_CHARACTERS = 360  # of a document that are kept
_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --quiet: #59636e; --grid: #e4e7eb; --good: #00734f;
  --bad: #b34700; }
@media (prefers-color-scheme: dark) { :root { --paper: #15191e; --ink: #f0f3f6; --quiet: #9aa4af; --grid: #2b323a;
  --good: #4fd1a5; --bad: #ff8a3d; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--quiet); font-weight: 600; }
.quiet { color: var(--quiet); } .good { color: var(--good); } .bad { color: var(--bad); }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 0 2rem; }
ol { margin: .2rem 0; padding-left: 1.4rem; } li { margin-bottom: .4rem; } img { max-width: 100%; height: auto; }
"""


def content(
    comparison: Comparison,
    *,
    queries: Mapping[str, Query],
    documents: Mapping[str, Document],
    qrels: Qrels | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The comparison, ready for JSON, its changes with texts and grades of the documents.

    Args:
        comparison: What `searchkit.evaluation.comparison.compare` returned.
        queries: Queries by id, for their texts; a missing one is shown by its id alone.
        documents: Documents by id; likewise.
        qrels: Judgements for the grades; None omits them.
        about: What was compared and how; it comes first.
    """
    changes = {
        name: [
            {
                **asdict(change),
                "text": queries[change.query].text if change.query in queries else None,
                "documents_before": _texts(change.documents_before, documents, (qrels or {}).get(change.query, {})),
                "documents_after": _texts(change.documents_after, documents, (qrels or {}).get(change.query, {})),
            }
            for change in largest
        ]
        for name, largest in comparison.changes.items()
    }
    return {**(about or {}), **comparison.summary(), "changes": changes}


def _texts(ids: list[str], documents: Mapping[str, Document], grades: Mapping[str, int]) -> list[dict[str, Any]]:
    shown = []
    for id in ids[:DOCUMENTS]:
        document = documents.get(id)
        text = {} if document is None else {"title": document.title, "text": document.text[:_CHARACTERS]}
        shown.append({"id": id, "grade": grades.get(id), **text})
    return shown


def shown_documents(comparison: Comparison) -> set[str]:
    """Ids of all documents that `content` shows."""
    return {
        id
        for changes in comparison.changes.values()
        for change in changes
        for id in (*change.documents_before[:DOCUMENTS], *change.documents_after[:DOCUMENTS])
    }


def stars(p: float | None) -> str:
    """Significance marks: "**" below .01, "*" below .05."""
    return "" if p is None or p != p else "**" if p < 0.01 else "*" if p < 0.05 else ""


def readable_p(p: float | None) -> str:
    """0.00003 -> "<.0001"; "-" for none."""
    return "-" if p is None or p != p else "<.0001" if p < 0.0001 else f"{p:.4f}"


def html(content: Mapping[str, Any], *, title: str, charts: tuple[Path, Path] | None = None) -> str:
    """An HTML page that needs no other file and no network, for light and dark screens.

    Args:
        content: What :func:`content` returned.
        title: Its heading.
        charts: SVG files of the chart for light and for dark pages, to be embedded.
    """
    metrics, against = content["metrics"], content["against"]
    differences = content["differences"]
    marks = {(row["system"], row["metric"]): stars(row["adjusted_randomisation"]) for row in differences}
    systems = [
        [
            name,
            *(f"{values[metric]:.4f}{marks.get((name, metric), '')}" for metric in metrics),
            "-" if values["seconds_per_query"] is None else f"{1000 * values['seconds_per_query']:.1f}",
            "-" if values["bytes_per_document"] is None else f"{values['bytes_per_document']:,.0f}",
        ]
        for name, values in content["systems"].items()
    ]
    tests = [
        [
            row["system"],
            row["metric"],
            f"{row['difference']:+.4f}",
            "-" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}",
            f"{row['wins']} / {row['ties']} / {row['losses']}",
            *(readable_p(row[key]) for key in ("p_randomisation", "adjusted_randomisation", "p_t", "adjusted_t")),
        ]
        for row in differences
    ]
    heads = [f"against {against}", "metric", "change", "95 % interval", "win / tie / loss"]
    heads += ["p", "p, Holm", "p of t test", "p of t test, Holm"]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{content["queries"]} queries. Two-sided p values of a randomisation test (sign flips) and '
        f"of a paired t test; Holm's correction counts {content['tests']} tests. * marks p &lt; .05 and ** p &lt; .01 "
        "by the corrected randomisation test.</p>",
        _table(["system", *metrics, "ms/query", "bytes/document"], systems),
        _instructions(content.get("instructions", {})),
        _picture(charts, f"{metrics[0]} against bytes per document and milliseconds per query") if charts else "",
        f"<h2>Differences from {escape(against)}</h2>",
        _table(heads, tests),
        *(_changes(name, against, metrics[0], changes) for name, changes in content["changes"].items() if changes),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        "<body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"
    )


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _instructions(labels: Mapping[str, str]) -> str:
    rows = "".join(f"<li><b>{escape(label)}</b>: {escape(text or 'none')}</li>" for label, text in labels.items())
    return f"<h2>Instructions</h2><ul>{rows}</ul>" if rows else ""


def _picture(charts: tuple[Path, Path], description: str) -> str:
    # As data, not as elements: the ids inside two SVGs would clash in one page.
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(chart.read_bytes()).decode("ascii") for chart in charts
    )
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{escape(description)}" src="{light}"></picture>'
    )


def _changes(name: str, against: str, metric: str, changes: list[dict[str, Any]]) -> str:
    parts = [f"<h2>{escape(name)} against {escape(against)}: queries whose {escape(metric)} changed most</h2>"]
    for change in changes:
        kind = "good" if change["after"] > change["before"] else "bad"
        parts.append(
            f'<h3>{escape(change["text"] or change["query"])} <span class="quiet">{escape(change["query"])}</span> '
            f'<span class="{kind}">{change["before"]:.3f} → {change["after"]:.3f}</span></h3>'
        )
        sides = "".join(
            f'<div><span class="quiet">{when}</span><ol>{_documents(change[f"documents_{when}"])}</ol></div>'
            for when in ("before", "after")
        )
        parts.append(f'<div class="sides">{sides}</div>')
    return "\n".join(parts)


def _documents(documents: list[dict[str, Any]]) -> str:
    rows = []
    for document in documents:
        grade = "not judged" if document["grade"] is None else f"grade {document['grade']}"
        text = " ".join((document.get("text") or "").split())
        rows.append(
            f"<li><b>{escape(document.get('title') or document['id'])}</b> "
            f'<span class="quiet">{escape(document["id"])}, {grade}</span><br>{escape(text)}</li>'
        )
    return "".join(rows)
