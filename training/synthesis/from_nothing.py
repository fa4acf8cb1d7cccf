"""Examples that need no corpus: the six task groups of Wang et al. (arXiv 2401.00368), 93 languages."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from searchkit.errors import InputError
from searchkit.training.dataset import folded
from searchkit.training.synthesis.answers import Answer
from searchkit.training.synthesis.llm import Request
from searchkit.training.synthesis.prompting import Mix, Prompt, load_prompt, quota
from searchkit.training.synthesis.quality import Candidate

BRAINSTORMED = ("short-long", "long-short", "short-short", "long-long")
"""Groups whose examples follow a task definition that the model thought of before."""

TASKS_A_CALL = 20
_SLOTS = 1 << 32  # more than any run has

# Which fields of the answer are query, positive and negative.
_FIELDS = {
    "short-long": ("user_query", "positive_document", "hard_negative_document"),
    "long-short": ("input_text", "label", "misleading_label"),
    "pair": ("input", "positive_document"),
    "triple": ("S1", "S2", "S3"),
}


class Asker(Protocol):
    """Asks a model, and remembers what was made of the answers.

    Attributes:
        trouble: Why the last question that came to nothing did.
    """

    trouble: str

    @property
    def stopped(self) -> str:
        """Why nothing more is asked; "" while there is no reason."""
        ...

    async def ask(self, requests: Sequence[Request]) -> list[Answer | None]:
        """The answers in the order of the questions, None for those that came to nothing."""
        ...

    def settled(self, name: str) -> Any:
        """What was remembered under a name, also by an earlier run; None when nothing."""
        ...

    def settle(self, name: str, value: Any) -> None:
        """Remember something that JSON can hold; not in a run that was stopped."""
        ...


class Slot(NamedTuple):
    """A place for one example.

    Args:
        number: Among all.
        group: The task group.
        place: Number among those of the group.
        language: Code.
        target_language: Code of the positive's language, where it is another.
        attempt: How often it has been tried to fill it.
    """

    number: int
    group: str
    place: int
    language: str
    target_language: str
    attempt: int


class FromNothing:
    """Asks for examples slot by slot; what is asked for a slot depends on the seed and its number alone.

    A slot keeps its group and language until an example fills it, so that refusals do not shift the proportions.

    Args:
        mix: How often which group and language come.
        count: Examples wanted.
        seed: Of everything drawn.
        tries: Times that a slot is asked for.
        examples_per_task: Of each task definition; the paper has about two.
        folder: The user's own prompts, which go before those that ship.
    """

    def __init__(
        self,
        mix: Mix,
        *,
        count: int,
        seed: int = 0,
        tries: int = 4,
        examples_per_task: int = 2,
        folder: Path | None = None,
    ) -> None:
        self._mix, self._count, self._seed, self._tries = mix, count, seed, tries
        self._per_task = examples_per_task
        self._prompts = {group: load_prompt(group, folder) for group in mix.groups}
        self._brainstorms = {
            group: load_prompt(f"tasks-{group}", folder) for group in mix.groups if group in BRAINSTORMED
        }
        if unknown := [prompt.name for prompt in self._prompts.values() if prompt.answer not in _FIELDS]:
            raise InputError(
                f"prompt {unknown[0]} asks for an answer that is no example; one of {', '.join(_FIELDS)} is"
            )
        self._tasks: dict[str, list[str]] = {}
        self._filled = bytearray(count)
        self._round = 0

    async def prepare(self, asker: Asker) -> None:
        """Have the model think of task definitions: as many as the examples need, with none twice.

        Those of an earlier run keep their places, so that the same is asked with them.

        Raises:
            ValueError: It thought of none for a group.
        """
        wanted: dict[str, int] = {}
        for slot in self._slots():
            if slot.group in self._brainstorms:
                wanted[slot.group] = 1 + slot.place // self._per_task
        for group, count in wanted.items():
            name = f"tasks of {self._brainstorms[group].label}, seed {self._seed}"
            kept = asker.settled(name) or {"tasks": [], "calls": 0}
            tasks, calls = list(kept["tasks"]), int(kept["calls"])
            known = set(map(folded, tasks))
            for _ in range(self._tries):
                missing = -(-(count - len(tasks)) // TASKS_A_CALL)
                for answer in await asker.ask([self._brainstorm(group, calls + n) for n in range(missing)]):
                    for task in getattr(answer, "tasks", ()):
                        if folded(task) not in known:
                            known.add(folded(task))
                            tasks.append(task)
                calls += max(0, missing)
                if len(tasks) >= count:
                    break
            if not tasks and not asker.stopped:
                raise InputError(
                    f"the model thought of no task for the group {group}, so no example of it can be asked for "
                    f"({asker.trouble})"
                )
            # Where it has run out of ideas they come round again, and later ones follow after that.
            tasks = list(islice(cycle(tasks), max(count, len(tasks))))
            asker.settle(name, {"tasks": tasks, "calls": calls})
            self._tasks[group] = tasks

    def rounds(self) -> Iterator[Callable[[], Iterator[Request]]]:
        """For each round what to ask in it, over and over the same, until all slots are filled or were tried enough."""
        for attempt in range(self._tries):
            self._round = attempt
            if not all(self._filled):
                yield self._requests

    def candidates(self, request: Request, answer: Answer) -> list[Candidate]:
        """The example in an answer."""
        slot, task = request.about
        prompt = self._prompts[slot.group]
        query, positive, *negatives = (getattr(answer, field) for field in _FIELDS[prompt.answer])
        return [
            Candidate(
                query,
                positive,
                prompt.instruction or task,
                slot.group,
                slot.language,
                prompt.label,
                negatives=tuple(negatives),
                target_language=slot.target_language,
                slot=slot.number,
            )
        ]

    def accept(self, one: Candidate) -> bool:
        """Fill the example's slot with it."""
        self._filled[one.slot] = True
        return True

    def described(self, request: Request) -> dict[str, Any]:
        """What to say of a question that came to nothing."""
        slot = request.about[0]
        return {"group": slot.group, "language": slot.language}

    def _slots(self) -> Iterator[Slot]:
        languages = {group: self._languages(group) for group in self._mix.groups}
        places = dict.fromkeys(self._mix.groups, 0)
        groups = quota(self._mix.groups, random.Random(f"{self._seed}/groups"))
        for number, group in enumerate(islice(groups, self._count)):
            yield Slot(number, group, places[group], *next(languages[group]), self._round)
            places[group] += 1

    def _languages(self, group: str) -> Iterator[tuple[str, str]]:
        """(language, language of the positive where it is another) for the slots of a group."""
        weights = self._mix.languages
        for number, code in enumerate(quota(weights, random.Random(f"{self._seed}/languages/{group}"))):
            if group != "bitext":
                yield code, ""
            elif others := {other: weight for other, weight in weights.items() if other != code}:
                rng = random.Random(f"{self._seed}/targets/{number}")
                yield code, rng.choices(list(others), list(others.values()))[0]
            else:
                raise InputError("bitext needs two languages or more; name another one, or leave the group out")

    def _requests(self) -> Iterator[Request]:
        for slot in self._slots():  # without tasks, in a run that was stopped, nothing of the group can be there
            if not self._filled[slot.number] and self._tasks.get(slot.group) != []:
                yield self._request(slot)

    def _request(self, slot: Slot) -> Request:
        prompt = self._prompts[slot.group]
        rng = random.Random(f"{self._seed}/{slot.group}/{slot.place}/{slot.attempt}")
        values = prompt.draw(rng) | {"language": self._mix.names[slot.language]}
        if slot.target_language:
            values["target_language"] = self._mix.names[slot.target_language]
        task = ""
        if tasks := self._tasks.get(slot.group):
            task = values["task"] = tasks[slot.place // self._per_task % len(tasks)]
        draw = slot.attempt * _SLOTS + slot.place
        return Request(prompt.label, prompt.answer, prompt.messages(values), draw, about=(slot, task))

    def _brainstorm(self, group: str, call: int) -> Request:
        prompt: Prompt = self._brainstorms[group]
        values: Mapping[str, str] = prompt.draw(random.Random(f"{self._seed}/tasks/{group}/{call}"))
        messages = prompt.messages({**values, "count": str(TASKS_A_CALL)})
        return Request(prompt.label, prompt.answer, messages, call, about=(Slot(-1, group, call, "en", "", 0), ""))
