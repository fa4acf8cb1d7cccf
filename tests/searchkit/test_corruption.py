"""Damage to any file of an index leads to the right answer or a clear error, never to a wrong answer or a crash.

`SEARCHKIT_CORRUPTIONS=200 pytest tests/searchkit/test_corruption.py` damages more, SEARCHKIT_SEED=1 in other places.
Run as a program, this file is the judge: a child for every damage, so that a crash is noticed.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from forked import Server, folder_in_memory, serve

from searchkit.check import check
from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.ranking import MODES, SearchOptions
from searchkit.records import Document
from searchkit.repair import repair

CORRUPTIONS = int(os.environ.get("SEARCHKIT_CORRUPTIONS", "12"))
SEED = int(os.environ.get("SEARCHKIT_SEED", "0"))

KINDS = {  # recipe, whether vectors are kept too, whether it is compacted, and left with a log as by a killed writer
    "flat": ("flat", True, False, False),
    "pq": ("pq:8", True, False, True),
    "hnsw": ("hnsw", True, True, False),
    "ivf-int8": ("ivf-int8", True, False, True),
    "binary": ("binary", True, True, True),
    "int8 alone": ("int8", False, False, False),
}
QUERIES = ["why do bees dance", "a note of nobody"]
SENTENCES = ["Bees dance to tell of flowers.", "Bread rises by yeast.", "The oboe, nobody knew why.", "The sun is up."]
FILTERS: list[dict[str, Any] | None] = [None, {"n": {"$gte": 3, "$lt": 280}}]


# What is damaged


def notes(start: int, stop: int) -> list[Document]:
    return [
        Document(f"d{n}", f"{SENTENCES[n % len(SENTENCES)]} Written {n}.", f"Note {n}", {"n": n})
        for n in range(start, stop)
    ]


def build(embedder: Embedder, root: str) -> None:
    """Build an index of each kind, of several segments and with deletions, and record its answers."""
    base = Path(root) / "base"
    with SearchEngine.create(base, model=embedder) as engine:
        engine.add(notes(0, 270), commit_every=90)
    for kind, (recipe, keep, compacted, logged) in KINDS.items():
        folder = Path(root) / f"{kind}.index"
        made = folder.with_suffix(".made") if logged else folder
        shutil.copytree(base, made)
        with SearchEngine.open(made, model=embedder, writable=True) as engine:
            engine.store_as(recipe, keep_vectors=keep)
            engine.delete([f"d{n}" for n in range(3, 200, 13)])
            if compacted:
                engine.compact()
            engine.add([*notes(270, 290), *[Document("d9", "It was rewritten.", "Note 9")]], update=True)
            engine.add(notes(290, 300))
            engine.delete(["d11", "d280"])
            if logged:
                shutil.copytree(made, folder)
        for name, change in {"before": False, "changed": True}.items():
            shutil.copytree(folder, Path(root) / "copy")
            if change:
                changed(embedder, Path(root) / "copy")
            answers = answers_of(embedder, Path(root) / "copy")
            assert not any(isinstance(answer, str) for answer in answers.values()), answers
            (Path(root) / f"{kind}.{name}.json").write_text(json.dumps(answers))
            shutil.rmtree(Path(root) / "copy")


def changed(embedder: Embedder, folder: Path) -> None:
    with SearchEngine.open(folder, model=embedder, writable=True) as engine:
        engine.add([Document("new", "A note on bees."), Document("d20", "The sun, a note.", "Note 20")], update=True)
        engine.delete(["d21", "d11"], where={"n": 22})


def answers_of(embedder: Embedder, folder: Path) -> dict[str, Any]:
    """Ask an index everything: each an answer, or the text of a clear error."""
    answers: dict[str, Any] = {}
    try:
        engine = SearchEngine.open(folder, model=embedder)
    except (ValueError, OSError) as error:
        return {"open": str(error)}
    with engine:
        work = {
            f"{mode}, {where}": partial(engine.search_many, QUERIES, k=400, options=SearchOptions(mode, where=where))
            for mode in MODES
            for where in FILTERS
        }
        for name, ask in work.items():
            try:
                answers[name] = [
                    [[hit.id, hit.title, hit.text, hit.metadata, hit.score] for hit in hits] for hits in ask()
                ]
            except (ValueError, OSError) as error:
                answers[name] = str(error)
        try:
            answers["documents"] = [[list(each) for each in engine.store.documents.living()]]
        except (ValueError, OSError) as error:
            answers["documents"] = str(error)
    return answers


# How it is damaged


def files_by_part(folder: Path) -> dict[str, list[Path]]:
    """The files of an index by part, so that each part is damaged as often as any other."""
    parts: dict[str, list[Path]] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = file.relative_to(folder)
        part = inside.parts[0] if inside.parts[0] in ("codebooks", "lexical") else file.name
        parts.setdefault(part, []).append(file)
    return parts


def damage(folder: Path, others: list[Path], chance: random.Random) -> str:
    """Damage one file, or swap two; returns which and how."""
    parts = files_by_part(folder)
    part = chance.choice([part for part in parts if part != "write.lock"])
    file = chance.choice(parts[part])
    before = content = file.read_bytes()
    alike = [other for other in parts[part] if other != file]
    foreign = [path for other in others for path in files_by_part(other).get(part, [])]
    how = chance.choice(["bit", "bytes", "cut", "zeros", "more", "gone", "swap", "foreign"])
    if how == "gone":
        file.unlink()
    elif how == "swap" and alike:
        other = chance.choice(alike)
        content = other.read_bytes()
        other.write_bytes(before)
        file.write_bytes(content)
    elif how == "foreign" and foreign:
        content = chance.choice(foreign).read_bytes()
        file.write_bytes(content)
    else:
        at = chance.randrange(len(content)) if content else 0
        changed = bytearray(content)
        if how == "cut":
            del changed[at:]
        elif how == "zeros":
            size = chance.choice([512, 4096])
            block = slice(at // size * size, at // size * size + size)
            changed[block] = bytes(len(changed[block]))
        elif how == "more" or not content:
            changed += chance.randbytes(chance.choice([1, 100, 8192]))
        elif how == "bytes":
            for _ in range(chance.randint(2, 40)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
        else:
            how = "bit"
            changed[at] ^= 1 << chance.randrange(8)
        content = bytes(changed)
        file.write_bytes(content)
    if how != "gone" and content == before:
        return damage(folder, others, chance)
    return f"{how} {file.relative_to(folder)}"


# How it is judged


def judge(embedder: Embedder, root: str, number: int) -> dict[str, Any]:
    """Damage an index once, and list what is wrong with how it copes: nothing, if all is well."""
    chance = random.Random(number)
    kind = list(KINDS)[number % len(KINDS)]
    source, folder = Path(root) / f"{kind}.index", Path(root) / "work"
    shutil.copytree(source, folder / "to ask")
    others = [Path(root) / f"{other}.index" for other in KINDS if other != kind]
    case = damage(folder / "to ask", others, chance)
    for name in ("to repair", "to change"):
        shutil.copytree(folder / "to ask", folder / name)
    sound, after = (json.loads((Path(root) / f"{kind}.{name}.json").read_text()) for name in ("before", "changed"))
    wrong: list[str] = []
    said = compare("asked", answers_of(embedder, folder / "to ask"), sound, wrong)
    said += judge_change(embedder, folder / "to change", after, wrong)
    found = judge_repair(embedder, folder / "to repair", case, sound, said, wrong)
    shutil.rmtree(folder)
    return {"case": f"{number}: {kind}, {case}", "wrong": wrong, "errors": said, "found": found}


def compare(when: str, answers: dict[str, Any], sound: dict[str, Any], wrong: list[str]) -> list[str]:
    """Return the errors among some answers; unclear errors and differing answers are wrong."""
    said = []
    for name, answer in answers.items():
        if isinstance(answer, str):
            said.append(answer)
            if not re.search(r"/to (ask|change|repair)/", answer):
                wrong.append(f"{when} {name}: no file is named: {answer}")
            elif not re.search(r"searchkit check|build the index again|index\.db", answer):
                wrong.append(f"{when} {name}: no help: {answer}")
        elif answer != sound[name]:
            wrong.append(f"{when} {name}: another answer: {difference(answer, sound[name])}")
    return said


def difference(answer: list[list[Any]], sound: list[list[Any]]) -> str:
    mine, theirs = ({each[0] for hits in side for each in hits} for side in (answer, sound))
    return f"less {sorted(theirs - mine)[:9]}, more {sorted(mine - theirs)[:9]}, of {len(theirs)}"


def judge_change(embedder: Embedder, folder: Path, after: dict[str, Any], wrong: list[str]) -> list[str]:
    """Adding, replacing and deleting succeed completely, or say what prevents them."""
    try:
        changed(embedder, folder)
    except (ValueError, OSError) as error:
        return compare("changing", {"it": str(error)}, after, wrong)
    return compare("changed", answers_of(embedder, folder), after, wrong)


def judge_repair(
    embedder: Embedder, folder: Path, case: str, sound: dict[str, Any], said: list[str], wrong: list[str]
) -> bool:
    """A check finds damage in any file that matters, and a repair undoes it or says what is lost."""
    try:
        faults = [finding.damage for finding in check(folder) if not finding.ok]
    except ValueError as error:
        faults = [str(error)]
    file = case.partition(" ")[2]
    named = file.startswith(("segments/", "codebooks/")) or re.match(r"lexical/\d+/(?!.*\.lock$)[^.]", file)
    if not faults and (named or said):
        wrong.append(f"check found nothing, where {said} was said")
    try:
        report = repair(folder, model=embedder)
    except (ValueError, OSError) as error:
        compare("repairing", {"it": str(error)}, sound, wrong)
        if not file.startswith("index.db"):
            wrong.append(f"not repaired: {error}")
        return bool(faults)
    wrong += [f"not repaired: {finding}" for finding in report.findings if not finding.ok]
    answers = answers_of(embedder, folder)
    gone = set(report.lost)
    if any("commits are lost" in done for done in report.done):  # and it is as one of the commits before them left it
        held = sorted(each[0] for each in answers["documents"][0])
        if sorted(hit[0] for hit in answers["dense, None"][0]) != held:
            wrong.append("repaired: documents and vectors differ")
        return bool(faults)
    if any("missing from the database" in done for done in report.done):  # said, though not by id
        gone |= {each[0] for each in sound["documents"][0]} - {each[0] for each in answers["documents"][0]}
    for name, before in sound.items():
        answer = answers.get(name, answers.get("open"))
        if isinstance(answer, str):
            wrong.append(f"repaired {name}: {answer}")
            continue
        for mine, theirs in zip(answer, before, strict=True):
            left = [each for each in theirs if each[0] not in gone]
            found = [each for each in mine if each[0] not in gone]
            if sorted(map(str, (each[:3] for each in found))) != sorted(map(str, (each[:3] for each in left))):
                wrong.append(f"repaired {name}: another answer: {difference([found], [left])}, {report}")
                break
            if not gone and name != "documents":
                scores = [sorted(each[4] for each in side) for side in (found, left)]
                if not np.allclose(*scores, atol=0.02):
                    wrong.append(f"repaired {name}: other scores")
                    break
    return bool(faults)


def test_no_damage_gives_a_wrong_answer_or_a_crash(forks: Server) -> None:
    wrong, outcomes = [], Counter[str]()
    with folder_in_memory() as root:
        forks.do("build", root=str(root))
        for number in range(1000 * SEED, 1000 * SEED + CORRUPTIONS):
            forks.start("judge", root=str(root), number=number)
            status, judged = forks.finish()
            if status:
                wrong.append(f"{number}: ended by {status}")
                shutil.rmtree(root / "work", ignore_errors=True)
                continue
            outcomes[
                "error" if judged["errors"] else "equal answers, check errs" if judged["found"] else "equal answers"
            ] += 1
            wrong += [f"{judged['case']}: {each}" for each in judged["wrong"]]
    print(dict(outcomes))
    assert not wrong, "\n".join(wrong)


if __name__ == "__main__":
    serve({"build": build, "judge": judge})
