"""What every recipe costs and loses on judged collections: prints a Markdown table.

    python tests/benchmarks/recipes.py scifact/ nfcorpus/ cranfield/ [--model builtin] [--indexes FOLDER]

Each set is a BEIR folder. Its documents are indexed whole, in --indexes if given, where a second run finds them again.
Tunings are chosen for a k-NN recall@10 of 0.95 with phrases of held-out passages as queries. With these tunings the
published split is then searched and judged, and nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from searchkit.compression.measure import Candidate, MeasureOptions, measure
from searchkit.engine import SearchEngine
from searchkit.indexer.vectors.recipes import recipe_of
from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_judgements


def measured(set_folder: Path, index: Path, model: str, names: list[str] | None, recall: float) -> list[Candidate]:
    """Every recipe on a set, which is indexed first."""
    with SearchEngine.create(index, model=model, chunk_tokens=0, exist_ok=True) as engine:
        engine.add(read_corpus(set_folder))
    with SearchEngine.open(index) as engine:
        judgements = read_judgements(set_folder).for_model(engine.settings["model"]["default_instruction"])
        options = MeasureOptions(names, recall)
        tuned = measure(engine, options=options, on_recipe=_progress)
        options = replace(options, tunings={candidate.name: candidate.tuning for candidate in tuned})
        return measure(engine, judgements, options=options, on_recipe=_progress)


def _progress(name: str, number: int, total: int) -> None:
    print(f"[{number}/{total}] {name}", file=sys.stderr, flush=True)


def table(results: dict[str, list[Candidate]]) -> str:
    """Smallest first, for each set: k-NN recall@10, and the relative difference of nDCG@10 to exact search."""
    sides = [{candidate.name: candidate for candidate in candidates} for candidates in results.values()]
    names = [name for name in sides[0] if all(name in side for side in sides)]
    names.sort(key=lambda name: (_code(sides[0][name]), name))
    heads = " | ".join(f"{name}: recall@10 | nDCG@10" for name in results)
    lines = [f"| recipe | bytes a code | in memory | {heads} | largest loss |", "|" + "---|" * (4 + 2 * len(results))]
    for name in names:
        each = [side[name] for side in sides]
        changes = [one.ndcg_change or 0.0 for one in each]
        cells = [f"{one.recall_10:.3f} | {100 * change:+.1f} %" for one, change in zip(each, changes, strict=True)]
        size = f"{_code(each[0])} | {each[0].bytes_per_vector:.0f}"
        lines.append(f"| {name} | {size} | {' | '.join(cells)} | {max(0.0, -100 * min(changes)):.1f} % |")
    return "\n".join(lines)


def _code(one: Candidate) -> int:
    """Bytes of a vector's code, without the 8-byte number that inverted files keep with it."""
    factory = recipe_of(one.recipe).factory
    return round(one.bytes_per_vector) - (8 if "IVF" in factory else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, metavar="SET")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--recipes", help="separated by commas [default: those of `searchkit compress`]")
    parser.add_argument("--recall", type=float, default=0.95, help="goal of the tunings")
    parser.add_argument("--indexes", type=Path, help="keep the indexes here, each as NAME.index")
    parser.add_argument("--report", type=Path, help="file for all figures in JSON")
    arguments = parser.parse_args()
    names = arguments.recipes.split(",") if arguments.recipes else None
    results: dict[str, list[Candidate]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for folder in arguments.sets:
            name = folder.resolve().name
            index = (arguments.indexes or Path(temporary)) / f"{name}.index"
            results[name] = measured(folder, index, arguments.model, names, arguments.recall)
    print(table(results))
    if arguments.report:
        content = {name: [asdict(one) for one in candidates] for name, candidates in results.items()}
        arguments.report.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
