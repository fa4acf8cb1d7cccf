"""Titles and metadata of Markdown and other plain text with headings."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import yaml

_FENCE = re.compile(r" {0,3}(?P<mark>`{3,}|~{3,})(?P<info>[^`]*)$")
_ATX = re.compile(r" {0,3}#(?:[ \t]+(?P<title>.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}=+[ \t]*$")
_OTHER_BLOCK = re.compile(r" {0,3}(?:#{1,6}(?:\s|$)|[>|]|[-*+]\s|\d+[.)]\s|(?:[-*_][ \t]*){3,}$)| {4}|\t")
_HTML_HEADING = re.compile(r"<h1\b[^>]*>(?P<title>.*?)</h1>", re.IGNORECASE | re.DOTALL)
_UNDERLINE = re.compile(r"([!-/:-@\[-`{-~])\1*[ \t]*$")  # of reStructuredText
_ORG_TITLE = re.compile(r"^#\+title:[ \t]*(.+)$", re.IGNORECASE | re.MULTILINE)
_ADOC_TITLE = re.compile(r"^= +(.+)$", re.MULTILINE)


def front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Split YAML (between lines of ---) or TOML (+++) from the beginning of a text.

    Returns:
        (its keys as JSON has them, the text after it); ({}, the whole text) where there is none or it cannot be parsed.
    """
    match = re.match(r"(---|\+\+\+)[ \t]*\n(.*?\n)??(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", text, re.DOTALL)
    if not match:
        return {}, text
    try:
        parsed = (_yaml if match[1] == "---" else tomllib.loads)(match[2] or "")
    except (yaml.YAMLError, ValueError, RecursionError):  # a line between rules, not front matter
        return {}, text
    if not isinstance(parsed, dict):
        return {}, text
    return {str(key): _plain(value) for key, value in parsed.items()}, text[match.end() :].lstrip("\n")


def _yaml(text: str) -> Any:
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        raise ValueError("aliases may expand without end")
    return yaml.safe_load(text)


def markdown_title(text: str) -> str:
    """The first level-one heading outside code and comments, or ""."""
    lines = list(_visible(text))
    position, title = _first_heading(lines)
    html = _HTML_HEADING.search("\n".join(lines[:position]))
    return (_inline(re.sub(r"<[^>]*>", "", html["title"])) if html else "") or title


def _first_heading(lines: list[str]) -> tuple[int, str]:
    """Line and title of the first heading of Markdown's own; (all lines, "") without one."""
    paragraph: list[str] = []
    for position, line in enumerate(lines):
        if match := _ATX.match(line):
            if match["title"]:
                return position, _inline(match["title"])
        elif paragraph and _SETEXT.match(line):
            return position, _inline(" ".join(paragraph))
        if not line.strip() or (_OTHER_BLOCK.match(line) and not (paragraph and line.startswith((" ", "\t")))):
            paragraph = []
        else:
            paragraph.append(line.strip())
    return len(lines), ""


def _visible(text: str) -> Iterator[str]:
    """The lines outside code fences and HTML comments; a fence comes as a blank line."""
    fence, comment = "", False
    for line in text.splitlines():
        if comment:
            _, end, line = line.partition("-->")
            if not end:
                continue
            comment = False
        if not fence:
            line, comment_begins, _ = re.sub(r"<!--.*?-->", "", line).partition("<!--")
            comment = bool(comment_begins)
        mark = _FENCE.match(line)
        if fence:
            if mark and mark["mark"].startswith(fence) and not mark["info"].strip():
                fence = ""
        elif mark:
            fence = mark["mark"]
            yield ""
        else:
            yield line


def rst_title(text: str) -> str:
    """The first section title of reStructuredText, or ""."""
    lines = text.splitlines()
    for line, below in pairwise(lines):
        if line.strip() and not _UNDERLINE.match(line) and _UNDERLINE.match(below) and len(below) >= len(line.strip()):
            return line.strip()
    return ""


def org_title(text: str) -> str:
    """What "#+title:" says, or ""."""
    match = _ORG_TITLE.search(text)
    return match[1].strip() if match else ""


def adoc_title(text: str) -> str:
    """The document title of AsciiDoc, or ""."""
    match = _ADOC_TITLE.search(text)
    return match[1].strip() if match else ""


def _inline(text: str) -> str:
    """A heading without the marks of links, images, emphasis and code."""
    text = re.sub(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"(\*\*|__|`+)(?=\S)(.+?)(?<=\S)\1", r"\2", text)
    text = re.sub(r"(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=\S)\*(?![\w*])", r"\1", text)
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", " ".join(text.split()))


def _plain(value: Any) -> Any:
    """A value of YAML or TOML as JSON has it; dates are ISO strings."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | float) else str(value)
