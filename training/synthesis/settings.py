"""The settings of a run that writes examples, its report, and its progress."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from searchkit.errors import InputError
from searchkit.training.checking import check_types
from searchkit.training.files import write_json
from searchkit.training.synthesis.outcomes import Outcomes
from searchkit.training.synthesis.quality import Candidate

KEY_VARIABLE = "OPENAI_API_KEY"
_WITH_INDEX = (
    "queries_per_passage", "kinds", "instruction", "samples", "min_words", "round_trip", "judge", "judged"
)  # fmt: skip
_FROM_NOTHING = ("groups", "languages", "examples_per_task")


@dataclass(frozen=True, slots=True)
class SynthesizeConfig:
    """Everything that decides what is written.

    Args:
        out: JSON lines to write, for `searchkit train`. Beside them, with other suffixes, are the report, the figure,
            the rejects, and a folder with the answers.
        model: The writing model, as its server calls it.
        count: Number of examples to write.
        base_url: The server's address, up to and including /v1; None is OpenAI's.
        key_variable: The environment variable that holds the API key.
        concurrency: Requests in flight.
        timeout: Seconds to wait for an answer.
        retries: How often a request is repeated after a failure of the server or the connection.
        backoff: Seconds before the first retry.
        temperature: Sampling temperature.
        top_p: Nucleus sampling threshold.
        max_output_tokens: Token limit of one answer.
        max_tokens: Token limit for this output, all its runs together; None is unlimited.
        max_cost: Likewise, in the currency of the prices.
        price_in: Price per million input tokens.
        price_out: Price per million output tokens.
        prompts: Folder whose prompts and mix.toml take precedence over the shipped ones.
        groups: Task group -> weight instead of the paper's; from nothing only.
        languages: Language code -> weight instead of the paper's; from nothing only.
        examples_per_task: Examples per task definition; from nothing only.
        queries_per_passage: Queries per request; grounded only, as are the next four.
        kinds: Kinds of query; empty takes all.
        instruction: Of all examples; None has the model write instructions that fit the collection.
        samples: File of the user's own queries, which set the tone: JSON lines with "query" or "text"; None shows none.
        min_words: Shorter passages are skipped.
        round_trip: The positive has to be among this many documents that the index finds for the query; 0 accepts all.
        likeness: Queries whose four-character shingles are this similar to an earlier query's are rejected.
        check_language: Reject texts that are clearly in the wrong language.
        judge: Have the model grade what the index finds for each query, for better positives and graded hard negatives;
            grounded only.
        judged: Documents graded per query.
        batch: Use the server's batch service, which answers within a day.
        poll: Seconds between two looks at a batch.
        evaluation: Queries that will judge the result, and that no example may repeat: BEIR folders as FOLDER or
            FOLDER:SPLIT, or files of queries.
        tries: Rounds in which rejected examples are requested again.
        seed: Random seed.
    """

    out: str
    model: str
    count: int = 1000
    base_url: str | None = None
    key_variable: str = KEY_VARIABLE
    concurrency: int = 16
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 0.5
    temperature: float = 1.0
    top_p: float = 1.0
    max_output_tokens: int = 4096
    max_tokens: int | None = None
    max_cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    prompts: str | None = None
    groups: Mapping[str, float] | None = None
    languages: Mapping[str, float] | None = None
    examples_per_task: int = 2
    queries_per_passage: int = 3
    kinds: tuple[str, ...] = ()
    instruction: str | None = None
    samples: str | None = None
    min_words: int = 15
    round_trip: int = 20
    likeness: float = 0.8
    check_language: bool = True
    judge: bool = False
    judged: int = 6
    batch: bool = False
    poll: float = 30.0
    evaluation: tuple[str, ...] = ()
    tries: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name in (
            "count",
            "concurrency",
            "max_output_tokens",
            "examples_per_task",
            "queries_per_passage",
            "judged",
            "tries",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected 1 or more")
        for name in (
            "temperature", "top_p", "retries", "round_trip", "min_words", "price_in", "price_out", "poll", "backoff"
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected a number of 0 or more")
        for name in ("timeout", "max_tokens", "max_cost"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} is {value}; expected a number above 0")
        if not self.model:
            raise InputError("the model has no name; give the name that its server uses")
        if self.base_url is not None:
            check_url(self.base_url)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_variable):  # maybe the key, so it is not shown
            raise InputError(
                "key_variable is not the name of an environment variable; put the key into one, such as "
                "OPENAI_API_KEY, and give its name"
            )
        if self.out.endswith(".gz"):
            raise InputError(f"{self.out}: examples are written uncompressed; name a file such as pairs.jsonl")

    def check_use(self, *, with_index: bool) -> None:
        """Reject settings that would be ignored.

        Raises:
            InputError: A setting applies only to the other way of writing examples.
        """
        others = _FROM_NOTHING if with_index else _WITH_INDEX
        ignored = [
            each.name for each in fields(self) if each.name in others and getattr(self, each.name) != each.default
        ]
        if ignored:
            way, advice = ("without", "without an index") if with_index else ("with", "with an index")
            raise InputError(f"{', '.join(ignored)}: applies only {way} an index; omit it, or run {advice}")

    @property
    def prompts_folder(self) -> Path | None:
        """The folder of the user's own prompts."""
        return None if self.prompts is None else Path(self.prompts)

    def beside(self, ending: str) -> Path:
        """A file beside the output: pairs.jsonl -> pairs.report.json."""
        out = Path(self.out)
        return out.with_name(out.name.removesuffix(".jsonl") + ending)


@dataclass
class SynthesisReport:
    """The result of a run; all counts but `asked` and `seconds` include earlier runs.

    Args:
        examples: Examples written to the output.
        wanted: The requested number.
        asked: Answers that arrived in this run.
        answers: Answers that were paid for, all runs together.
        tokens_in: Tokens of the requests, as the server counted them.
        tokens_out: Tokens of the answers.
        estimated: Answers whose tokens the server did not count.
        cost: At the given prices.
        stopped: Why the run ended early, or "".
        out_of_budget: It ended early because the budget is used up.
        groups: Examples by task group.
        languages: Examples by language of the query.
        kinds: Examples by kind of query.
        judged: Examples by what became of their positives, where the model graded them.
        refused: Rejected answers and examples, by reason.
        outcomes: What became of every example that was asked for, by group and prompt.
        troubles: Failures of the server and the connection, by kind.
        words: Lengths of queries and positives in words, by range.
        prompts: Examples by prompt and version.
        model: The writing model.
        seed: Random seed.
        waited: Seconds in which the server answered, all runs together; those of answers at the same time add up.
        seconds: Duration of this run.
    """

    examples: int = 0
    wanted: int = 0
    asked: int = 0
    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: int = 0
    cost: float = 0.0
    stopped: str = ""
    out_of_budget: bool = False
    groups: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=Outcomes)
    troubles: dict[str, int] = field(default_factory=dict)
    words: dict[str, dict[str, int]] = field(default_factory=lambda: {"query": {}, "positive": {}})
    prompts: dict[str, int] = field(default_factory=dict)
    model: str = ""
    seed: int = 0
    waited: float = 0.0
    seconds: float = 0.0

    def per_example(self, amount: float) -> float:
        """A sum over all answers, such as `tokens_out`, divided by the examples that were written."""
        return amount / max(1, self.examples)

    def add(self, candidate: Candidate) -> None:
        """Count an example."""
        self.examples += 1
        for counts, name in (
            (self.groups, candidate.group),
            (self.languages, candidate.language or "unknown"),
            (self.kinds, candidate.kind),
            (self.judged, candidate.judged),
            (self.prompts, candidate.prompt),
        ):
            if name:
                counts[name] = counts.get(name, 0) + 1
        for name, text in (("query", candidate.query), ("positive", candidate.positive)):
            range_ = length_range(text)
            self.words[name][range_] = self.words[name].get(range_, 0) + 1

    def save(self, file: Path) -> None:
        """Write the report as JSON."""
        write_json(file, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, the largest counts first."""
        values = asdict(replace(self, outcomes=Outcomes()))
        values["outcomes"] = [outcome.to_json() for outcome in (*self.outcomes.all(), self.outcomes.total())]
        values["per_example"] = {
            "tokens_in": round(self.per_example(self.tokens_in), 1),
            "tokens_out": round(self.per_example(self.tokens_out), 1),
            "waited": round(self.per_example(self.waited), 3),
        }
        for name in ("groups", "languages", "kinds", "judged", "refused", "troubles", "prompts"):
            values[name] = dict(sorted(values[name].items(), key=lambda item: (-item[1], item[0])))
        for name, counts in self.words.items():
            values["words"][name] = dict(sorted(counts.items(), key=lambda item: int(item[0].partition("-")[0])))
        return values


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Args:
        stage: "tasks", "asking", "filtering" or "judging".
        examples: Examples in the answers so far while asking; examples written, in the other stages.
        wanted: The requested number.
        tokens: Tokens spent so far, earlier runs included.
        cost: Likewise.
        seconds: Since the run began.
        refused: Rejected answers so far.
    """

    stage: str
    examples: int
    wanted: int
    tokens: int
    cost: float
    seconds: float
    refused: int


def without_secrets(url: str) -> str:
    """An address without user name, password and query string."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def check_url(url: str) -> None:
    """Raise InputError unless this is the address of a server; what may be a password is not shown."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or parts.query:
        shown = url.rpartition("@")[2].partition("?")[0]
        what = "has a query string, which cannot be sent" if good else "is not the address of a server"
        raise InputError(f'base_url "{shown}" {what}; expected something like http://localhost:8000/v1')


def length_range(text: str) -> str:
    """The range of a text's length in words: "1", "2-3", "4-7" and so on, doubling."""
    low = 1 << (max(1, len(text.split())).bit_length() - 1)
    return str(low) if low == 1 else f"{low}-{2 * low - 1}"
