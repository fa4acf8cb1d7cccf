"""Examples that need no corpus: the six task groups of Wang et al. (arXiv 2401.00368), 93 languages."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple, Protocol

from searchkit.errors import InputError
from searchkit.training.synthesis.answers import Answer
from searchkit.training.synthesis.prompting import Prompt, load_mix, load_prompt, quota
from searchkit.training.synthesis.protocol import Request
from searchkit.training.synthesis.quality import Candidate
from searchkit.training.synthesis.settings import SynthesizeConfig
from searchkit.training.texts import words

BRAINSTORMED = ("short-long", "long-short", "short-short", "long-long")
"""Groups whose examples follow a task definition that the model wrote before."""

TASKS_A_CALL = 20
_SLOTS = 1 << 32  # more than any run needs

# The fields of the answer that are query, positive and negative.
_FIELDS = {
    "short-long": ("user_query", "positive_document", "hard_negative_document"),
    "long-short": ("input_text", "label", "misleading_label"),
    "pair": ("input", "positive_document"),
    "triple": ("S1", "S2", "S3"),
}


class Asker(Protocol):
    """Sends requests to a model, and stores what was derived from the answers."""

    @property
    def trouble(self) -> str:
        """Why the last answer that was rejected was."""
        ...

    @property
    def stopped(self) -> str:
        """Why no more requests are sent; "" while they are."""
        ...

    async def ask(self, requests: Sequence[Request]) -> list[Answer | None]:
        """The answers in the order of the requests, None where there is no usable one."""
        ...

    def settled(self, name: str) -> Any:
        """What this or an earlier run stored under a name; None if nothing."""
        ...

    def settle(self, name: str, value: Any) -> None:
        """Store a JSON value; does nothing in a run that was stopped."""
        ...


class Slot(NamedTuple):
    """A place for one example.

    Args:
        number: Position among all slots.
        group: The task group.
        position: Position among the slots of the group.
        language: Language code.
        target_language: Code of the positive's language, where it differs.
        attempt: Earlier attempts to fill it.
    """

    number: int
    group: str
    position: int
    language: str
    target_language: str
    attempt: int


class FromNothing:
    """Requests examples slot by slot; the request for a slot depends on the seed and the slot's number alone.

    A slot keeps its group and language until an example fills it, so that rejections do not shift the proportions.

    Args:
        config: What to write.
    """

    def __init__(self, config: SynthesizeConfig) -> None:
        self._count, self._seed, self._tries = config.count, config.seed, config.tries
        self._per_task, folder = config.examples_per_task, config.prompts_folder
        self._mix = mix = load_mix(folder).only(config.groups, config.languages)
        self._prompts = {group: load_prompt(group, folder) for group in mix.groups}
        self._brainstorms = {
            group: load_prompt(f"tasks-{group}", folder) for group in mix.groups if group in BRAINSTORMED
        }
        if unknown := [prompt.name for prompt in self._prompts.values() if prompt.answer not in _FIELDS]:
            raise InputError(
                f"prompt {unknown[0]} asks for an answer that holds no example; use one of {', '.join(_FIELDS)}"
            )
        self._tasks: dict[str, list[str]] = {}
        self._filled = bytearray(config.count)
        self._attempt = -1

    async def prepare(self, asker: Asker) -> None:
        """Have the model write task definitions: as many as the examples need, all different.

        Those of an earlier run keep their positions, so that the same requests follow from them.

        Raises:
            InputError: It wrote none for a group.
        """
        wanted: dict[str, int] = {}
        for slot in self._slots():
            if slot.group in self._brainstorms:
                wanted[slot.group] = 1 + slot.position // self._per_task
        for group, count in wanted.items():
            name = f"tasks of {self._brainstorms[group].label}, seed {self._seed}"
            kept = asker.settled(name) or {"tasks": [], "calls": 0}
            tasks, calls = list(kept["tasks"]), int(kept["calls"])
            known = {tuple(words(task)) for task in tasks}
            for _ in range(self._tries):
                missing = -(-(count - len(tasks)) // TASKS_A_CALL)
                for answer in await asker.ask([self._brainstorm(group, calls + n) for n in range(missing)]):
                    for task in getattr(answer, "tasks", ()):
                        if (said := tuple(words(task))) not in known:
                            known.add(said)
                            tasks.append(task)
                calls += max(0, missing)
                if len(tasks) >= count:
                    break
            if not tasks and not asker.stopped:
                raise InputError(
                    f"the model wrote no task for the group {group}, so no example of it can be requested "
                    f"({asker.trouble})"
                )
            # Where the model has run out of ideas the tasks repeat, and later ones follow after that.
            tasks = list(islice(cycle(tasks), max(count, len(tasks))))
            asker.settle(name, {"tasks": tasks, "calls": calls})
            self._tasks[group] = tasks

    def next_round(self) -> bool:
        """Begin a round; False once all slots are filled or were tried often enough."""
        self._attempt += 1
        return self._attempt < self._tries and not all(self._filled)

    def requests(self) -> Iterator[Request]:
        """The requests of the current round, the same each time this is called within it."""
        for slot in self._slots():  # a run that was stopped may lack the tasks of a group
            if not self._filled[slot.number] and self._tasks.get(slot.group) != []:
                yield self._request(slot)

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
                shown="\n".join(prompt.texts.values()),
            )
        ]

    def accept(self, candidate: Candidate) -> bool:
        """Fill the example's slot."""
        self._filled[candidate.slot] = True
        return True

    def described(self, request: Request) -> dict[str, Any]:
        """What identifies a request whose answer is rejected."""
        slot = request.about[0]
        return {"group": slot.group, "language": slot.language}

    def asked(self, request: Request) -> list[str]:
        """The group of each example that a request asks for; none where it asks for tasks."""
        slot = request.about[0]
        return [] if slot.number < 0 else [slot.group]

    def _slots(self) -> Iterator[Slot]:
        languages = {group: self._languages(group) for group in self._mix.groups}
        positions = dict.fromkeys(self._mix.groups, 0)
        groups = quota(self._mix.groups, random.Random(f"{self._seed}/groups"))
        for number, group in enumerate(islice(groups, self._count)):
            yield Slot(number, group, positions[group], *next(languages[group]), self._attempt)
            positions[group] += 1

    def _languages(self, group: str) -> Iterator[tuple[str, str]]:
        """(language, language of the positive where it differs) for the slots of a group."""
        weights = self._mix.languages
        for number, code in enumerate(quota(weights, random.Random(f"{self._seed}/languages/{group}"))):
            if group != "bitext":
                yield code, ""
            elif others := {other: weight for other, weight in weights.items() if other != code}:
                rng = random.Random(f"{self._seed}/targets/{number}")
                yield code, rng.choices(list(others), list(others.values()))[0]
            else:
                raise InputError("bitext needs at least two languages; name another, or leave the group out")

    def _request(self, slot: Slot) -> Request:
        prompt = self._prompts[slot.group]
        rng = random.Random(f"{self._seed}/{slot.group}/{slot.position}/{slot.attempt}")
        values = prompt.draw(rng) | {"language": self._mix.names[slot.language]}
        if slot.target_language:
            values["target_language"] = self._mix.names[slot.target_language]
        task = ""
        if tasks := self._tasks.get(slot.group):
            task = values["task"] = tasks[slot.position // self._per_task % len(tasks)]
        draw = slot.attempt * _SLOTS + slot.position
        return Request(prompt.label, prompt.answer, prompt.messages(values), draw, about=(slot, task))

    def _brainstorm(self, group: str, call: int) -> Request:
        prompt: Prompt = self._brainstorms[group]
        values: Mapping[str, str] = prompt.draw(random.Random(f"{self._seed}/tasks/{group}/{call}"))
        messages = prompt.messages({**values, "count": str(TASKS_A_CALL)})
        return Request(prompt.label, prompt.answer, messages, call, about=(Slot(-1, group, call, "en", "", 0), ""))
