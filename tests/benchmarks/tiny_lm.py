"""A random decoder, pairs and a collection for `gpu_session.sh --tiny`: python tests/benchmarks/tiny_lm.py OUT"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from train_7b import TINY, build, random_texts


def main() -> None:
    out = Path(sys.argv[1])
    build(out / "lm", TINY, "cpu")
    queries, documents = random_texts(40, 8, 512, 0), random_texts(40, 24, 512, 1)
    (out / "pairs").mkdir(parents=True, exist_ok=True)
    rows = [{"query": query, "positive": document} for query, document in zip(queries, documents, strict=True)]
    (out / "pairs" / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    beir = out / "words"
    (beir / "qrels").mkdir(parents=True, exist_ok=True)
    texts = {"corpus": documents, "queries": queries}
    for name, each in texts.items():
        lines = [json.dumps({"_id": str(number), "text": text}) for number, text in enumerate(each)]
        (beir / f"{name}.jsonl").write_text("\n".join(lines))
    for split, numbers in (("dev", range(20)), ("test", range(20, 40))):
        judged = "".join(f"{number}\t{number}\t1\n" for number in numbers)
        (beir / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")


if __name__ == "__main__":
    main()
