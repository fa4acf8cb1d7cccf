"""Prompts as data: their texts, what is drawn for each request, and the proportions of tasks and languages."""

from __future__ import annotations

import hashlib
import heapq
import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.training.synthesis.answers import ANSWERS

FOLDER = Path(__file__).parent / "prompts"
_PLACE = re.compile(r"\{([a-z_]+)\}")

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of query that a grounded prompt asks for."""

    name: str
    weight: float
    description: str
    instruction: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of the folder.

    Args:
        name: The file's name without suffix.
        label: Name, version and a digest of the file, such as "sts@1-5f0c2a9e"; recorded with every example.
        answer: The answer it asks for (see :mod:`searchkit.training.synthesis.answers`).
        texts: Role -> text with {placeholders}.
        choices: Placeholder -> the values that one is drawn from.
        instruction: Shared by all its examples, if any.
        kinds: Kinds of query, for grounded prompts.
    """

    name: str
    label: str
    answer: str
    texts: Mapping[str, str]
    choices: Mapping[str, tuple[str, ...]]
    instruction: str = ""
    kinds: tuple[Kind, ...] = ()

    def draw(self, rng: random.Random) -> dict[str, str]:
        """A random value for every placeholder that has choices."""
        return {name: rng.choice(values) for name, values in self.choices.items()}

    def messages(self, values: Mapping[str, str]) -> tuple[Message, ...]:
        """The chat messages; inserted values are not searched for further placeholders.

        Raises:
            InputError: A placeholder has no value.
        """

        def value(match: re.Match[str]) -> str:
            if match[1] not in values:
                known = ", ".join(sorted(values)) or "none"
                raise InputError(f"prompt {self.name} has a placeholder {match[0]}; the known ones are: {known}")
            return values[match[1]]

        return tuple({"role": role, "content": _PLACE.sub(value, text).strip()} for role, text in self.texts.items())


@dataclass(frozen=True, slots=True)
class Mix:
    """The proportions of task groups and languages.

    Args:
        groups: Name -> weight.
        languages: Code -> weight.
        names: Code -> name in English.
    """

    groups: Mapping[str, float]
    languages: Mapping[str, float]
    names: Mapping[str, str] = field(repr=False)

    def only(self, groups: Mapping[str, float] | None = None, languages: Mapping[str, float] | None = None) -> Mix:
        """The mix with a user's own weights for the groups, the languages, or both.

        In a single language there are no translations: bitext is left out where the groups are not the user's.
        """
        for what, given, known in (("task group", groups, self.groups), ("language", languages, self.names)):
            for name, weight in (given or {}).items():
                if name not in known:
                    raise InputError(f'no {what} is called "{name}"; choose from: {", ".join(known)}')
                if not 0 < weight < float("inf"):
                    raise InputError(f"the {what} {name} has weight {weight:g}; it must be a number above 0")
        spoken, chosen = dict(languages or self.languages), dict(groups or self.groups)
        if not groups and len(spoken) == 1 and len(chosen) > 1:
            chosen.pop("bitext", None)
        return Mix(chosen, spoken, self.names)


def load_prompt(name: str, folder: Path | None = None) -> Prompt:
    """Read one prompt: the user's own if their folder has one of that name, else the shipped one.

    Raises:
        InputError: The file cannot be read as a prompt.
    """
    file, values = _read(name, folder)
    content = file.read_text("utf-8").replace("\r\n", "\n")
    try:
        prompt = Prompt(
            name,
            f"{name}@{int(values['version'])}-{hashlib.sha256(content.encode()).hexdigest()[:8]}",
            str(values["answer"]),
            {role: str(text) for role, text in values["messages"].items()},
            {placeholder: _choices(items) for placeholder, items in values.get("choices", {}).items()},
            str(values.get("instruction", "")),
            tuple(
                Kind(kind, float(says["weight"]), str(says["is"]), str(says["instruction"]))
                for kind, says in values.get("kinds", {}).items()
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file}: {error!r}; a prompt has version, answer and [messages] (see the shipped prompts)"
        ) from None
    if prompt.answer not in ANSWERS or not prompt.texts:
        raise InputError(f"{file}: answer is one of {', '.join(ANSWERS)}, and [messages] holds at least one text")
    for kind in prompt.kinds:
        if not 0 < kind.weight < float("inf"):
            raise InputError(f"{file}: the kind {kind.name} has weight {kind.weight:g}; it must be a number above 0")
    return prompt


def load_mix(folder: Path | None = None) -> Mix:
    """Read the proportions of groups and languages: the user's own mix.toml if there is one, else the paper's."""
    file, values = _read("mix", folder)
    try:
        names = {str(code): str(name) for code, name in values["languages"].items()}
        weights = {str(code): float(weight) for code, weight in values["weights"].items()}
        groups = {str(group): float(weight) for group, weight in values["groups"].items()}
        others = [code for code in names if code not in weights]
        share = float(values.get("others", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file}: {error!r}; expected [groups], [weights] and [languages], as in the shipped file"
        ) from None
    for name, weight in [*groups.items(), *weights.items(), ("others", share)]:
        if not 0 <= weight < float("inf"):
            raise InputError(f"{file}: {name} has weight {weight:g}; it must be a number, and not negative")
    groups = {group: weight for group, weight in groups.items() if weight > 0}
    if unnamed := weights.keys() - names.keys():
        raise InputError(f"{file}: no name for {', '.join(sorted(unnamed))}; add them to [languages]")
    if share > 0:
        weights |= dict.fromkeys(others, share / max(1, len(others)))
    return Mix(groups, {code: weight for code, weight in weights.items() if weight > 0}, names)


def quota(weights: Mapping[str, float], rng: random.Random) -> Iterator[str]:
    """An endless sequence of names in which every stretch, not just the average, follows the weights.

    Among the first n, a name has its share of n, give or take one. Where it begins is random, so that rare names occur
    in short stretches too, as often as they should. The sequence does not depend on how much of it is read.
    """
    if not weights:
        raise InputError("there are no weights; give at least one name a weight above 0")
    total = sum(weights.values())
    positions = [(rng.random() * total / weight, name) for name, weight in weights.items()]
    heapq.heapify(positions)
    while True:
        position, name = positions[0]
        yield name
        heapq.heapreplace(positions, (position + total / weights[name], name))


def _choices(values: list[Any]) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise TypeError(f"choices are {values!r}, not a list of values")
    return tuple(map(str, values))


def _read(name: str, folder: Path | None) -> tuple[Path, dict[str, Any]]:
    file = FOLDER / f"{name}.toml"
    if folder is not None:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; expected one that holds prompts such as queries.toml")
        if (folder / file.name).is_file():
            file = folder / file.name
    try:
        return file, tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as TOML: {error}") from error
