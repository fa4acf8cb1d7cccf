"""The model card of a trained model: its data, settings, command and measured results."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, fields
from pathlib import Path

from searchkit.models.conventions import SETTINGS
from searchkit.training.config import TrainConfig
from searchkit.training.log import TrainReport

_FLAGS = {
    "lora_rank": "--rank",
    "lora_alpha": "--alpha",
    "append_eos": "--eos",
}  # of settings that `searchkit train` calls otherwise
_NO_FLAG = ("teacher_neighbours", "teacher_follows")

_ATTENTION_NOTES = {
    "causal": "Attention is causal (`is_decoder: true` in `config.json`), unlike the base's.",
    "bidirectional": (
        "Attention is bidirectional: every token sees the whole text (`is_causal: false` in `config.json`). "
        "transformers before 5.2 ignores this and returns other vectors; searchkit then refuses to load the model."
    ),
}


def model_card(config: TrainConfig, report: TrainReport, *, query_repeats: int = 1) -> str:
    """README.md of a run's folder, as Markdown.

    Args:
        config: The run.
        report: Its result.
        query_repeats: How often the model reads a query.
    """
    dev = "\n".join(f"| {step} | {value:.4f} |" for step, value in report.dev) or "| - | not measured |"
    sources = "\n".join(f"- `{Path(source).name}`" for source in config.sources)
    note = _ATTENTION_NOTES[config.attention] + "\n\n" if config.attention else ""
    if query_repeats > 1:
        note += (
            f"The model reads every query {query_repeats} times (`query_repeats` in `{SETTINGS}`). searchkit does this "
            "by itself; in sentence-transformers, write "
            f'`model.encode_query(" ".join([query] * {query_repeats}))`.\n\n'
        )
    settings = "\n".join(f"| {name} | {_written(value)} |" for name, value in asdict(config).items())
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---
# {Path(config.out).name}

Trained from `{config.base}`{_command(config, report)}

{note}Data, {report.examples} examples ({report.refused} rows rejected):
{sources}

{report.steps} steps of {config.batch_size} queries, {report.tokens} tokens, {report.trainable} weights trained,
{report.seconds:.0f} s. {report.truncated} of {report.texts} texts were too long and truncated.

nDCG@10 on `{config.dev or "no dev set"}`:

| step | nDCG@10 |
|---|---|
{dev}
{_leak_table(config, report)}

Every setting:

| setting | value |
|---|---|
{settings}
"""


def _command(config: TrainConfig, report: TrainReport) -> str:
    """The command that repeats the run, if one does."""
    defaults = {field.name: field.default for field in fields(config)}
    words = ["searchkit", "train", *config.sources]
    for name, value in asdict(config).items():
        if name == "sources" or value == defaults[name]:
            continue
        if name in _NO_FLAG:
            return "."
        flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
        if name == "teacher":
            words += [word for teacher in config.teachers for word in (flag, teacher)]
            continue
        words.append(flag.replace("--", "--no-") if value is False else flag)
        if not isinstance(value, bool):
            words.append(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    if any(leaking.questions for leaking in report.leaks):
        words.append("--allow-leaks")
    return f" by\n\n    {shlex.join(words)}"


def _written(value: object) -> str:
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|")


def _leak_table(config: TrainConfig, report: TrainReport) -> str:
    if not config.dev:
        return ""
    rows = "\n".join(
        f"| `{Path(row.source).name}` | {row.examples} | {row.questions} | {row.documents} | {row.low_entropy} |"
        for row in report.leaks
    )
    return f"""
Examples that share a text with `{config.dev}`, ignoring case and spacing: its queries, its documents, or texts of so
few words that it may be chance.

| file | examples | queries | documents | few words |
|---|---|---|---|---|
{rows}
"""
