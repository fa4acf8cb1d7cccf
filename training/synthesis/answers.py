"""The answers that a model can be asked for, as schemas. Its text is parsed as JSON and validated, never executed.

Names and docstrings of the classes are part of the schemas that models are sent, and so of the key of every request:
a change makes earlier answers useless.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any

from searchkit.errors import AnswerError, InputError, MissingExtraError

try:
    from json_repair import repair_json
    from pydantic import (
        AfterValidator,
        BaseModel,
        ConfigDict,
        StrictInt,
        StrictStr,
        ValidationError,
        field_validator,
        model_validator,
    )
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"writing training data needs {error.name}: pip install 'searchkit[train]'", name=error.name
    ) from error


def _written(text: str) -> str:
    if not text.strip():
        raise InputError("the text is blank")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("the text has a lone surrogate, which UTF-8 cannot store") from None
    return text.strip()


Text = Annotated[StrictStr, AfterValidator(_written)]


class Answer(BaseModel):
    """Exactly these fields, none left out: what servers ask of a strict schema."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tasks(Answer):
    """Task definitions."""

    tasks: list[Text]

    @field_validator("tasks")
    @classmethod
    def _saying_what_to_do(cls, tasks: list[str]) -> list[str]:
        """Those that are no questions: small models also write what could be asked in a task."""
        kept = [task for task in tasks if not task.endswith(("?", "\uff1f"))]
        if not kept:
            raise InputError(f'none is an instruction such as "{_INSTRUCTION}"')
        return kept


class ShortLong(Answer):
    """A query with a document that serves it and one that nearly does."""

    user_query: Text
    positive_document: Text
    hard_negative_document: Text


class LongShort(Answer):
    """A text with its label and a wrong one."""

    input_text: Text
    label: Text
    misleading_label: Text


class Pair(Answer):
    """Two texts that match."""

    input: Text
    positive_document: Text


class Triple(Answer):
    """Three texts, the first two nearer to each other."""

    S1: Text
    S2: Text
    S3: Text


class CorpusTask(Answer):
    """An instruction for one kind of query."""

    kind: Text
    instruction: Text


class CorpusTasks(Answer):
    """Instructions that fit a collection."""

    tasks: list[CorpusTask]

    @field_validator("tasks")
    @classmethod
    def _instructing(cls, tasks: list[CorpusTask]) -> list[CorpusTask]:
        """Those that instruct a search engine. Small models also write questions, or repeat what they were shown."""
        kept = [task for task in tasks if instructs(task.instruction)]
        if not kept:
            raise InputError(f'none is an instruction such as "{_INSTRUCTION}"')
        return kept


class Asked(Answer):
    """A query of one kind."""

    kind: Text
    query: Text


class Queries(Answer):
    """Queries that one passage answers; none, where it answers nothing.

    Servers are asked for an object with a query for each kind, which leaves small models no kind to invent or to
    forget. A list of kinds and queries is accepted too.
    """

    queries: list[Asked]

    @model_validator(mode="before")
    @classmethod
    def _by_kind(cls, values: Any) -> Any:
        """{kind: query} -> {"queries": [{"kind": kind, "query": query}]}; queries left blank are left out."""
        if not isinstance(values, dict):
            return values
        if isinstance(values.get("queries"), dict):
            values = values["queries"]
        if "queries" in values:
            return values
        written = {kind.strip(): query for kind, query in values.items() if query is not None and query != ""}
        return {"queries": [{"kind": kind, "query": query} for kind, query in written.items()]}


class Grade(Answer):
    """How well one passage serves a query."""

    passage: StrictInt
    grade: StrictInt


class Grades(Answer):
    """How well each of some passages serves a query."""

    grades: list[Grade]


ANSWERS: dict[str, type[Answer]] = {
    "tasks": Tasks,
    "short-long": ShortLong,
    "long-short": LongShort,
    "pair": Pair,
    "triple": Triple,
    "corpus-tasks": CorpusTasks,
    "queries": Queries,
    "grades": Grades,
}

_INSTRUCTION = "Given a gardener's question, find advice that answers it"  # of the prompt
_SEARCHES = re.compile(
    r"\b(?:find|retrieve|search|identify|return|locate|select|look|fetch|show|provide|get)\b", re.IGNORECASE
)

# Chat templates that open the thoughts themselves leave only the end of them in the answer.
_THOUGHTS = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>|\A.*?</think(?:ing)?>(?=\s*(?:`{3}|\{))", re.DOTALL)
# Queries and documents may say "I'm unable to log in" or "I can't help falling in love". So the text of an example is
# an excuse only if it begins like one and says what it refuses.
_EXCUSE = re.compile(
    r"\A\W*(?:as an ai(?: language)? (?:model|assistant),? i\b"
    r"|(?:(?:i['\u2019]?m|i am) (?:very |so )?sorry|sorry|i apologi[sz]e|unfortunately)?,? ?(?:but )?"
    r"(?:i (?:cannot|can not|can['\u2019]?t|won['\u2019]?t|am unable to|am not able to)"
    r"|i['\u2019]?m (?:unable|not able) to) "
    r"(?:comply(?: with (?:that|this|your) request)?[.!]?\Z|fulfill? (?:that|this|your|the) request"
    r"|(?:help|assist)(?: you)? with (?:that|this|your|such)\b"
    r"|(?:answer|create|generate|produce|provide|write) (?:any|such|that|this|your) "
    r"(?:content|information|material|query|question|request|text)\b))",
    re.IGNORECASE,
)
# Where prose came instead of JSON, less is enough.
_REFUSAL = re.compile(
    r"\b(?:as an ai(?: language)? model|i['\u2019]?m sorry,? but i|i (?:cannot|can['\u2019]?t) "
    r"(?:help|assist|fulfil|comply|generate|provide)|i['\u2019]?m (?:unable|not able) to)\b",
    re.IGNORECASE,
)


def _no_constant(name: str) -> None:
    raise InputError(f"{name} is not a JSON number")


_REPAIRED = 50_000  # longest text whose JSON is repaired, in characters
_NO_NUMBER = re.compile(r":\s*-?(?:NaN|Infinity)\b")
_JSON = json.JSONDecoder(parse_constant=_no_constant)


@cache
def schema_of(name: str, kinds: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON schema of an answer, as servers accept it.

    Args:
        name: Which answer.
        kinds: The kinds that were asked for, where the answer names one: servers that obey schemas then write no other.
    """
    if name == "queries" and kinds:
        queries = {kind: {"type": "string"} for kind in kinds}
        return {"type": "object", "properties": queries, "required": list(kinds), "additionalProperties": False}
    schema = ANSWERS[name].model_json_schema()
    for part in schema.get("$defs", {}).values() if kinds else ():
        if "kind" in part["properties"]:
            part["properties"]["kind"]["enum"] = list(kinds)
    return schema


def instructs(text: str) -> bool:
    """Whether a text tells a search engine what to find: no question, no remark, not the prompt's own example."""
    long_enough = 5 <= len(text.split()) <= 60
    return long_enough and "?" not in text and _SEARCHES.search(text) is not None and text.strip(" .") != _INSTRUCTION


def read_answer(name: str, text: str, *, cut: bool = False) -> Answer:
    """Parse and validate what a model wrote. JSON with small faults is repaired, but no text in it is completed.

    Args:
        name: Which answer.
        text: What the model wrote.
        cut: It was cut off; the queries before that are read, and no other answer.

    Raises:
        AnswerError: It is empty, a refusal, not JSON, or not of the schema.
    """
    text = _THOUGHTS.sub("", text).strip()
    if not text:
        raise AnswerError("empty", "the answer is empty")
    try:
        values = _parsed(text, cut=cut)
    except (ValueError, RecursionError) as error:
        if _REFUSAL.search(text[:300]):
            raise AnswerError("refused by the model", text[:200]) from None
        raise AnswerError("not JSON", f"{error}: {text[:200]}") from None
    try:
        return ANSWERS[name].model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the answer"
        raise AnswerError("not of the schema", f"{field}: {first['msg']}") from None


def _parsed(text: str, *, cut: bool) -> Any:
    """The JSON value in a text, with prose around it skipped.

    Raises:
        ValueError: There is none that could be repaired.
    """
    start = text.find("{")
    try:
        return _JSON.decode(text) if start < 0 else _JSON.raw_decode(text, start)[0]
    except ValueError:
        # What ends within a string would be completed by nobody knows what.
        whole = text.rstrip("` \n").endswith(('"', "'", "}", "]"))
        if start < 0 or len(text) > _REPAIRED or not (whole or cut) or _NO_NUMBER.search(text):
            raise
        values = repair_json(text[start:], return_objects=True, skip_json_loads=True)
        if not isinstance(values, dict) or not values:
            raise
        if not cut and not all(_quoted(string, text) for string in _strings(values)):
            raise
        if cut:
            _drop_last(values)
        return values


def _strings(values: Any) -> Iterator[str]:
    """Every string in a JSON value, but not the keys."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _strings(value)


def _quoted(string: str, text: str) -> bool:
    """Whether a string stands in a text as one: a repair may also make strings of whatever is not quoted."""
    forms = {string, json.dumps(string, ensure_ascii=False)[1:-1], json.dumps(string)[1:-1]}
    return any(f"{mark}{form}{mark}" in text for form in forms for mark in ('"', "'"))


def _drop_last(values: dict[str, Any]) -> None:
    """Remove the query that an answer was cut off in: the last of a list, or of the object."""
    last = [*values][-1]
    if isinstance(values[last], list) and values[last]:
        values[last].pop()
    else:
        del values[last]


def refuses(text: str) -> bool:
    """Whether the text of an example is a model's excuse for not writing one."""
    return _EXCUSE.match(text) is not None
