"""The same passages in LanceDB and in Milvus-lite."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from costs import costs, each, peak_mib
from passages import FILTERS, K, blocks, queries, seeds

from searchkit.indexer.vectors.recipes import plan


class Job(NamedTuple):
    """What is measured."""

    folder: Path
    passages: int
    recipe: str
    lists: int
    commit: int

    @property
    def index(self) -> Path:
        return self.folder / f"{self.passages}.index"


def lancedb(job: Job) -> dict[str, Any]:
    """LanceDB with IVF_PQ of as many lists and bytes, and its own full-text index."""
    try:
        import lancedb as lance
        import pyarrow as arrow
    except ImportError as error:
        return {"skipped": f"{error}"}
    source, path = seeds(job.folder), job.folder / f"{job.passages}.lance"
    texts, vectors = queries(source)
    table, spelling = None, job.recipe.partition("+")[0]
    chosen = plan(spelling, vectors.shape[1], job.passages)
    lists = job.lists or chosen.lists or 1
    width = arrow.list_(arrow.float32(), vectors.shape[1])
    with costs() as cost:
        db = lance.connect(str(path))
        for documents, rows in blocks(source, 0, job.passages):
            flat = arrow.array(rows.ravel())
            batch = arrow.table(
                {
                    "id": [document.id for document in documents],
                    "text": [document.text for document in documents],
                    "vector": arrow.FixedSizeListArray.from_arrays(flat, rows.shape[1]).cast(width),
                    **{key: [document.metadata[key] for document in documents] for key in documents[0].metadata},
                }
            )
            table = db.create_table("passages", batch) if table is None else (table.add(batch), table)[1]
        assert table is not None
    found: dict[str, Any] = {"add": cost.rounded()}
    with costs() as cost:
        sizes = {"num_partitions": lists, "num_sub_vectors": chosen.code or 48}
        table.create_index(metric="cosine", vector_column_name="vector", index_type="IVF_PQ", **sizes)
    found["vector index"] = cost.rounded()
    with costs() as cost:
        table.create_fts_index("text")
    found["text index"] = cost.rounded()
    probes = max(1, round(lists**0.5))

    def dense(n: int) -> Any:
        return table.search(vectors[n]).nprobes(probes).refine_factor(10).limit(K).to_list()

    def hybrid(n: int) -> Any:
        asked = table.search(query_type="hybrid").vector(vectors[n]).text(texts[n])
        return asked.nprobes(probes).refine_factor(10).limit(K).to_list()

    found["dense"] = each(dense, 50)
    found["hybrid"] = each(hybrid, 50)
    for name, where in FILTERS.items():
        ((key, value),) = where.items()
        found[f"dense, {name}"] = each(
            lambda n, sql=f"{key} = '{value}'": table.search(vectors[n]).where(sql, prefilter=True).nprobes(probes)
            .refine_factor(10).limit(K).to_list(),
            20,
        )  # fmt: skip
    found["disk_mib"] = round(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 2**20)
    found["peak_mib"] = round(peak_mib())
    return found


def milvus(job: Job) -> dict[str, Any]:
    """Milvus-lite with IVF_FLAT, since its IVF_PQ is accepted and not built."""
    try:
        import milvus_lite  # noqa: F401
        from pymilvus import DataType, MilvusClient
    except ImportError as error:
        return {"skipped": f"{error}"}
    source, path = seeds(job.folder), job.folder / f"{job.passages}.milvus.db"
    _, vectors = queries(source)
    lists = job.lists or plan("ivf-pq:48", vectors.shape[1], job.passages).lists
    client = MilvusClient(str(path))
    schema = client.create_schema()
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("text", DataType.VARCHAR, max_length=4096)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    keys = ("language", "topic", "shelf")
    for key in keys:
        schema.add_field(key, DataType.VARCHAR, max_length=64)
    params = client.prepare_index_params()
    params.add_index("vector", index_type="IVF_FLAT", metric_type="IP", params={"nlist": lists})
    with costs() as cost:
        client.create_collection("passages", schema=schema, index_params=params)
        for documents, rows in blocks(source, 0, job.passages):
            for start in range(0, len(documents), 4096):
                some = slice(start, start + 4096)
                client.insert(
                    "passages",
                    [
                        {"id": d.id, "text": d.text, "vector": row, **{key: d.metadata[key] for key in keys}}
                        for d, row in zip(documents[some], rows[some], strict=True)
                    ],
                )
        client.load_collection("passages")
    found: dict[str, Any] = {"add": cost.rounded()}
    probes = {"params": {"nprobe": max(1, round(lists**0.5))}}
    one = partial(client.search, "passages", limit=K, search_params=probes)
    found["dense"] = each(lambda n: one(data=[vectors[n].tolist()]), 50)
    for name, where in FILTERS.items():
        ((key, value),) = where.items()
        found[f"dense, {name}"] = each(
            lambda n, test=f'{key} == "{value}"': one(data=[vectors[n].tolist()], filter=test), 20
        )
    size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    found["disk_mib"], found["peak_mib"] = round(size / 2**20), round(peak_mib())
    return found
