"""Titles and metadata of Markdown and other plain text with headings."""

from __future__ import annotations

import datetime
import html
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import yaml

from searchkit.indexer.unicode import normalised

_KEY = re.compile(r"^[A-Za-z_][\w -]*:(?=\s)", re.MULTILINE)
_FENCE = re.compile(r" {0,3}(?P<mark>`{3,}|~{3,})(?P<info>[^`]*)$")
_ATX = re.compile(r" {0,3}#(?:[ \t]+(?P<title>.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}=+[ \t]*$")
_OTHER_BLOCK = re.compile(r" {0,3}(?:#{1,6}(?:\s|$)|[>|]|[-*+]\s|\d+[.)]\s|(?:[-*_][ \t]*){3,}$)| {4}|\t")
_HTML_HEADING = re.compile(r"<h1\b[^>]*>(?P<title>.*?)</h1>", re.IGNORECASE | re.DOTALL)
_UNDERLINE = re.compile(r"([!-/:-@\[-`{-~])\1*[ \t]*$")  # of reStructuredText
_RULE = re.compile(r"[ \t]*([!-/:-@\[-_{-~])\1+[ \t]*$")  # above or below a heading; no fence of code
_ORG_TITLE = re.compile(r"^#\+title:[ \t]*(.+)$", re.IGNORECASE | re.MULTILINE)
_ADOC_TITLE = re.compile(r"^= +(.+)$", re.MULTILINE)


class FrontMatter(NamedTuple):
    """What stands before a text.

    Args:
        values: Its keys as JSON has them, {} where there is none or it cannot be read.
        text: What follows; the whole text where there are no values.
        fault: Why it cannot be read, "" where it can or there is none.
    """

    values: dict[str, Any]
    text: str
    fault: str = ""


def front_matter(text: str) -> FrontMatter:
    """Split YAML (between lines of ---) or TOML (+++) from the beginning of a text."""
    match = re.match(r"(---|\+\+\+)[ \t]*\n(.*?\n)??(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", text, re.DOTALL)
    if not match:
        first, _, rest = text.partition("\n")
        return FrontMatter({}, text, "it is not closed" if first.rstrip() == "---" and _KEY.match(rest) else "")
    block = match[2] or ""
    try:
        parsed = yaml.load(block, _Loader) if match[1] == "---" else tomllib.loads(block)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # A line between rules is no front matter, and no fault.
        return FrontMatter({}, text, _yaml_fault(error) if re.search(_KEY, block) else "")
    if not isinstance(parsed, dict):
        return FrontMatter({}, text)
    return FrontMatter({str(key): _plain(value) for key, value in parsed.items()}, text[match.end() :].lstrip("\n"))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML 1.2, by which 0123, NO and 10:30 are strings; so is 1e3, which is one in 1.1. No key twice, no aliases."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases may expand without end")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"  # as it is written: 1.50 is no 1.5, and -.0 no -0.0
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(values) < len(node.value):
            raise yaml.MarkedYAMLError(problem="a key comes twice", problem_mark=node.start_mark)
        return values

    def construct_timestamp(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.construct_yaml_timestamp(node)
        except ValueError:  # the 31st of June
            return node.value


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_timestamp)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"-?(?:0|[1-9][0-9]*)", list("-0123456789")),
    ("float", r"-?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|-?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
     list("-.0123456789")),
    ("timestamp", r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?"
     r"(?:[ \t]*(?:Z|[-+][0-9]{1,2}(?::?[0-9]{2})?))?)?", list("0123456789")),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _yaml_fault(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    advice = "; put a value that holds a colon in quotes" if "mapping values" in problem else ""
    return (f"line {mark.line + 2}: " if mark else "") + problem + advice


def markdown_title(text: str) -> str:
    """The first level-one heading outside code and comments, or ""."""
    lines = list(_visible(text))
    position, title = _first_heading(lines)
    tag = _HTML_HEADING.search("\n".join(lines[:position]))
    return (_inline(re.sub(r"<[^>]*>", "", tag["title"])) if tag else "") or title


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


def without_title(text: str, title: str) -> str:
    """A text without its first lines where they say its title and no more: the title goes with every passage anyway.

    The marks of a heading, a line above or below it and emphasis make no difference. What would leave nothing stays.
    """
    wanted, found, lines, used = _bare(title), "", text.splitlines(keepends=True), 0
    while found != wanted and used < len(lines):
        line = lines[used]
        said = "" if _RULE.match(line) else _bare(re.sub(r"^#\+title:", "", line, flags=re.IGNORECASE))
        found += said
        if not wanted.startswith(found) or not (said or _RULE.match(line) or line.isspace()):
            return text
        used += 1
    if 0 < used < len(lines) and _RULE.match(lines[used]) and lines[used - 1].lstrip()[:1] not in ("#", "="):
        used += 1
    while used < len(lines) and not lines[used].strip():
        used += 1
    return "".join(lines[used:]) if wanted and used < len(lines) else text


def _bare(text: str) -> str:
    """A line without spaces and marks, in one spelling of its letters."""
    return re.sub(r"[\s#=*_`\\]", "", normalised(text)).casefold()


def _inline(text: str) -> str:
    """A heading without the marks of links, images, emphasis, code, footnotes and anchors."""
    text = re.sub(r"\[\^[^\]]*\]|[ \t]*\{#[^}]*\}[ \t]*$", "", text)
    text = re.sub(r"!?\[\[(?:[^\]|]*\|)?([^\]]*)\]\]", r"\1", text)  # of wikis: [[page]], [[page|shown]]
    text = re.sub(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"(\*\*|__|`+)(?=\S)(.+?)(?<=\S)\1", r"\2", text)
    text = re.sub(r"(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=\S)\*(?![\w*])", r"\1", text)
    return html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", " ".join(text.split())))


def _plain(value: Any) -> Any:
    """A value of YAML or TOML as JSON has it; dates are ISO strings."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | float) else str(value)
