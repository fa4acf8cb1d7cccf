"""What decides which examples are written, and what is said of them afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from searchkit.errors import InputError
from searchkit.training.synthesis.quality import Candidate

KEY_VARIABLE = "OPENAI_API_KEY"
_OF_AN_INDEX = (
    "queries_per_passage", "kinds", "instruction", "samples", "min_words", "round_trip", "judge", "judged"
)  # fmt: skip
_FROM_NOTHING = ("groups", "languages", "examples_per_task")


@dataclass(frozen=True, slots=True)
class SynthesizeConfig:
    """Everything that decides what is written.

    Args:
        out: JSON lines to write, for `searchkit train`. Beside them lie, with other endings, the report, the figure,
            what was refused, and a folder with the answers.
        model: The writing model, as its server calls it.
        count: Examples wanted.
        base_url: The server's, up to and with /v1; None is OpenAI's.
        key_variable: The environment variable that holds the key.
        concurrency: Questions at once.
        timeout: Seconds for an answer.
        retries: Times that a question is asked again after a failure of the server or of the line.
        backoff: Seconds before the first of them.
        temperature: Of the sampling.
        top_p: Of the sampling.
        max_output_tokens: Longest answer.
        max_tokens: Most tokens spent on this output, all its runs together; None has no limit.
        max_cost: Likewise in the currency of the prices.
        price_in: Of a million tokens asked.
        price_out: Of a million tokens answered.
        prompts: Folder whose prompts and mix.toml go before those that ship.
        groups: Task group -> weight instead of the paper's; from nothing only.
        languages: Language code -> weight instead of the paper's; from nothing only.
        examples_per_task: Of each task definition; from nothing only.
        queries_per_passage: Asked for in one call; grounded only, as are the next four.
        kinds: Kinds of query; empty takes all.
        instruction: Of all examples; None lets the model write some that fit the collection.
        samples: File of the user's own queries, which set the tone: JSON lines with "query" or "text"; None shows none.
        min_words: Shorter passages are left out.
        round_trip: The positive has to be among so many documents that the index finds for the query; 0 does not look.
        likeness: Queries that share this much of their four-character shingles with an earlier one are left out.
        check_language: Leave out texts that are plainly in another language than they should be.
        judge: Let the model grade what the index finds for each query: better positives, hard negatives that were
            looked at; grounded only.
        judged: Documents graded for each query.
        batch: Hand the questions in as batches, which the server answers within a day.
        poll: Seconds between two looks at a batch.
        evaluation: Queries that judge the result, and that no example may ask: BEIR folders as FOLDER or FOLDER:SPLIT,
            or files of queries.
        tries: Rounds in which what was refused is asked anew.
        seed: Of everything drawn.
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
                raise InputError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in (
            "temperature", "top_p", "retries", "round_trip", "min_words", "price_in", "price_out", "poll", "backoff"
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; it must be a number, and not negative")
        for name in ("timeout", "max_tokens", "max_cost"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} is {value}; it must be a number above 0")
        if not self.model:
            raise InputError("the model has no name; give the one that its server knows it by")
        if self.base_url is not None:
            check_url(self.base_url)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_variable):  # maybe the key, so it is not shown
            raise InputError(
                "key_variable is no name of an environment variable; put the key into one, such as OPENAI_API_KEY, "
                "and give its name"
            )
        if self.out.endswith(".gz"):
            raise InputError(f"{self.out}: examples are written as plain JSON lines; name a file such as pairs.jsonl")

    def check_use(self, *, of_an_index: bool) -> None:
        """Refuse what would be ignored.

        Raises:
            ValueError: Something is set that is for the other way to write examples.
        """
        others = _FROM_NOTHING if of_an_index else _OF_AN_INDEX
        given = [one.name for one in fields(self) if one.name in others and getattr(self, one.name) != one.default]
        if given:
            way = "examples from nothing" if of_an_index else "queries about an index"
            advice = "leave the index out" if of_an_index else "name one"
            raise InputError(f"{', '.join(given)}: for {way} only; leave it out, or {advice}")

    def beside(self, ending: str) -> Path:
        """A file beside the output: pairs.jsonl -> pairs.report.json."""
        out = Path(self.out)
        return out.with_name(out.name.removesuffix(".jsonl") + ending)


@dataclass
class SynthesisReport:
    """What came of a run; all counts but `seconds`, `asked` and `examples_per_second` include earlier runs.

    Args:
        examples: Written to the output.
        wanted: How many were wanted.
        asked: Answers that came in this run; all others were there already.
        answers: Answers that were paid for in all.
        tokens_in: Tokens of the questions, by the server's count.
        tokens_out: Tokens of the answers.
        estimated: Answers whose tokens the server did not count.
        cost: By the prices given.
        stopped: Why the run ended before its time, or "".
        groups: Examples by task group.
        languages: Examples by language of the query.
        kinds: Examples by kind of query.
        judged: Examples by what became of their positives, where the model has looked again.
        refused: Answers and examples left out, by reason.
        troubles: Failures of the server and the line that were overcome or not, by sort.
        words: Length of queries and positives in words, by ranges.
        prompts: Examples by prompt and version.
        model: The writing model.
        seed: Of everything drawn.
        seconds: What this run took.
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
    groups: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    troubles: dict[str, int] = field(default_factory=dict)
    words: dict[str, dict[str, int]] = field(default_factory=lambda: {"query": {}, "positive": {}})
    prompts: dict[str, int] = field(default_factory=dict)
    model: str = ""
    seed: int = 0
    seconds: float = 0.0

    def add(self, one: Candidate) -> None:
        """Count an example."""
        self.examples += 1
        for counts, name in (
            (self.groups, one.group),
            (self.languages, one.language or "unknown"),
            (self.kinds, one.kind),
            (self.judged, one.judged),
            (self.prompts, one.prompt),
        ):
            if name:
                counts[name] = counts.get(name, 0) + 1
        for name, text in (("query", one.query), ("positive", one.positive)):
            range_ = length_range(text)
            self.words[name][range_] = self.words[name].get(range_, 0) + 1

    def save(self, file: Path) -> None:
        """Write it as JSON, the largest counts first."""
        values = asdict(self)
        for name in ("groups", "languages", "kinds", "judged", "refused", "troubles", "prompts"):
            values[name] = dict(sorted(values[name].items(), key=lambda item: (-item[1], item[0])))
        for name, counts in self.words.items():
            values["words"][name] = dict(sorted(counts.items(), key=lambda item: int(item[0].partition("-")[0])))
        file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is.

    Args:
        stage: "tasks", "asking", "sifting" or "judging".
        examples: In the answers so far while asking; of those sifted, the ones kept, while sifting.
        wanted: Examples wanted.
        tokens: Spent so far, earlier runs included.
        cost: Likewise.
        seconds: Since the run began.
        refused: Answers of no use so far.
    """

    stage: str
    examples: int
    wanted: int
    tokens: int
    cost: float
    seconds: float
    refused: int


def without_secrets(url: str) -> str:
    """An address without a user's name, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def check_url(url: str) -> None:
    """Refuse what is no address of a server; what may be a password is not shown.

    Raises:
        ValueError: It is none.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or parts.query:
        shown = url.rpartition("@")[2].partition("?")[0]
        what = "has a query, which cannot be sent" if good else "is no address of a server"
        raise InputError(f'base_url "{shown}" {what}; give such as http://localhost:8000/v1')


def length_range(text: str) -> str:
    """The range that a text's length in words lies in: "1", "2-3", "4-7" and so on, doubling."""
    low = 1 << (max(1, len(text.split())).bit_length() - 1)
    return str(low) if low == 1 else f"{low}-{2 * low - 1}"
