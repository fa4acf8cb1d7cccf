"""Every task instruction and query template, as data.

Instructions and their wording per collection: Wang et al., arXiv 2401.00368, table of evaluation instructions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from searchkit.errors import InputError

E5_TEMPLATE = "Instruct: {instruction}\nQuery: {query}"
"""How the paper writes a query with its instruction; documents have none."""


@dataclass(frozen=True, slots=True)
class Task:
    """A named retrieval task.

    Args:
        name: As users write it, in lower case.
        instruction: The sentence that says what every query is to find.
        split: The split that published figures are measured on.
        drop_self: Whether a hit with the query's own id is dropped before scoring.
        aliases: Other names of the same collection.
    """

    name: str
    instruction: str
    split: str = "test"
    drop_self: bool = False
    aliases: tuple[str, ...] = ()


_FORUMS = (
    "android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex", "unix",
    "webmasters", "wordpress",
)  # fmt: skip

WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"

WIKIPEDIA = "Given a question, retrieve Wikipedia passages that answer the question"

TASKS: tuple[Task, ...] = (
    Task("arguana", "Given a claim, find documents that refute the claim", drop_self=True),
    Task("climate-fever", "Given a claim about climate change, retrieve documents that support or refute the claim"),
    Task(
        "cqadupstack",
        "Given a question, retrieve detailed question descriptions from Stackexchange "
        "that are duplicates to the given question",
        aliases=("cqadupstack-retrieval", *(f"cqadupstack-{forum}-retrieval" for forum in _FORUMS)),
    ),
    Task("dbpedia", "Given a query, retrieve relevant entity descriptions from DBPedia", aliases=("dbpedia-entity",)),
    Task("fever", "Given a claim, retrieve documents that support or refute the claim", drop_self=True),
    Task(
        "fiqa",
        "Given a financial question, retrieve user replies that best answer the question",
        drop_self=True,
        aliases=("fiqa2018",),
    ),
    Task("hotpotqa", "Given a multi-hop question, retrieve documents that can help answer the question"),
    Task("msmarco", WEB_SEARCH, split="dev", drop_self=True),
    Task("nfcorpus", "Given a question, retrieve relevant documents that best answer the question"),
    Task("nq", WIKIPEDIA),
    Task(
        "quora",
        "Given a question, retrieve questions that are semantically equivalent to the given question",
        drop_self=True,
        aliases=("quora-retrieval",),
    ),
    Task("scidocs", "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper"),
    Task("scifact", "Given a scientific claim, retrieve documents that support or refute the claim"),
    Task(
        "touche2020",
        "Given a question, retrieve detailed and persuasive arguments that answer the question",
        aliases=("webis-touche2020", "touche"),
    ),
    Task("trec-covid", "Given a query on COVID-19, retrieve documents that answer the query"),
    # Not in the paper's table: questions about Wikipedia in many languages, with the instruction of NQ.
    Task("miracl", WIKIPEDIA, split="dev", aliases=("miracl-retrieval",)),
    Task("xquad", WIKIPEDIA, split="validation", aliases=("xquad-retrieval",)),
    Task("sts", "Retrieve semantically similar text."),
    Task("bitext", "Retrieve parallel sentences.", aliases=("bucc", "tatoeba")),
    Task("web", WEB_SEARCH),
)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_BY_NAME = {_key(name): task for task in TASKS for name in (task.name, *task.aliases)}


def find_task(name: str) -> Task | None:
    """The task of that name or alias, ignoring case and punctuation, or None."""
    return _BY_NAME.get(_key(name))


def get_task(name: str) -> Task:
    """The task of that name or alias; InputError, with the names there are, if there is none."""
    task = find_task(name)
    if task is None:
        known = ", ".join(task.name for task in TASKS)
        raise InputError(f"no task is called {name!r}; known tasks: {known} (or write your own instruction)")
    return task


def format_query(template: str, query: str, instruction: str) -> str:
    """Fill a template such as :data:`E5_TEMPLATE`.

    Not by ``str.format``: a query or instruction may contain braces.
    """
    head, _, tail = template.partition("{query}")
    return head.replace("{instruction}", instruction) + query + tail
