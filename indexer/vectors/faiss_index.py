"""Inner-product search with FAISS, over vectors stored by any recipe."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from searchkit.indexer.errors import InputError, MissingExtraError
from searchkit.indexer.files import NewFile, Stamp
from searchkit.indexer.vectors import faiss_filtered as filtered
from searchkit.indexer.vectors.recipes import RECIPES, Plan, Tuning

CHUNK = 16_384
"""Vectors that are float32 in memory at once when an index is made or rows are scored one by one."""

EXACT_BELOW = 0.1
"""Share of allowed rows below which they are scored one by one: a graph loses recall there, and a scan its point."""
NEARLY_ALL = 0.99
"""Share of allowed rows from which cells and graphs are searched as without a filter, such as after few deletions."""
CAGRA_LINKS = 64
"""Neighbours of a vector in a graph made by cuVS, as many as FAISS asks it for."""
FEW = 1000
"""Allowed rows of a segment up to which they are always scored one by one."""

_SIGN_AND_HALF = np.uint32(0x8FFFE000).astype(np.int32)
_EXPONENTS_APART = np.float32(2.0**112)


def faiss_module() -> Any:
    """FAISS, or an ImportError that says how to install it."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "vector search needs faiss: pip install 'searchkit[cpu]' or 'searchkit[gpu]'", name="faiss"
        ) from error
    # A damaged count must not make FAISS ask for all memory there is.
    faiss.set_deserialization_vector_byte_limit(1 << 40)
    return faiss


class SignIndex:
    """One bit a dimension, its sign, behind the interface of the other indexes.

    Scores are 1 - 2 * (differing signs) / dim, which grows with the cosine.
    """

    def __init__(self, dim: int, binary: Any = None) -> None:
        self.d = dim
        self.binary = binary if binary is not None else faiss_module().IndexBinaryFlat(8 * ((dim + 7) // 8))

    @property
    def ntotal(self) -> int:
        """Vectors held."""
        return int(self.binary.ntotal)

    def add(self, vectors: np.ndarray) -> None:
        """Add (n, dim) vectors."""
        self.binary.add(np.packbits(vectors > 0, axis=1))

    def search(self, queries: np.ndarray, k: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows), each (n_queries, k), best first; -1 where there are fewer."""
        distances, rows = self.binary.search(np.packbits(queries > 0, axis=1), k, params=params)
        return (1 - 2 * distances / self.d).astype(np.float32), rows

    def reconstruct_batch(self, rows: np.ndarray) -> np.ndarray:
        """The signs of some rows as unit vectors."""
        signs = np.unpackbits(self.codes[rows], axis=1, count=self.d).astype(np.float32) * 2 - 1
        return np.asarray(signs / np.sqrt(self.d), dtype=np.float32)

    @property
    def codes(self) -> np.ndarray:
        """(ntotal, bytes) uint8, a view."""
        size = self.binary.code_size
        return np.asarray(faiss_module().rev_swig_ptr(self.binary.xb.data(), self.ntotal * size)).reshape(-1, size)

    def reset(self) -> None:
        """Take all vectors out."""
        self.binary.reset()


def train(plan: Plan, sample: np.ndarray) -> Any:
    """An empty index that has learnt what its recipe has to learn.

    Args:
        plan: The recipe.
        sample: (n, dim) float32 unit rows to learn from.

    Raises:
        ValueError: The sample is too small for the recipe.
    """
    if len(sample) < plan.needed:
        raise InputError(
            f"recipe {plan.spelling} learns from {plan.needed} vectors or more (it wants {plan.wanted}), and "
            f"{len(sample)} came; add documents first, or take flat, fp16, int8, rabitq or binary"
        )
    if plan.recipe == "binary":
        return SignIndex(plan.dim)
    faiss = faiss_module()
    if plan.recipe == "cagra":
        return faiss.IndexHNSWCagra(plan.dim, CAGRA_LINKS // 2, faiss.METRIC_INNER_PRODUCT)
    # index_factory() and most constructors default to L2, whose distances are not similarities.
    index = faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
    if (ivf := _ivf(index)) is not None:
        ivf.cp.min_points_per_centroid = 1  # FAISS's warning is ours: `needed` and `wanted`
        if plan.code:
            ivf.pq.cp.min_points_per_centroid = 1
    if plan.recipe == "opq":
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.pq = quantiser = faiss.ProductQuantizer(plan.dim, plan.code, 8)
        quantiser.cp.min_points_per_centroid = 1
    if plan.width:
        # FAISS's PCA takes the mean off, after which inner products are no longer those of the vectors: turn only.
        components = faiss.downcast_VectorTransform(index.chain.at(0))
        components.train(np.ascontiguousarray(sample, dtype=np.float32))
        components.have_bias = False
    if plan.wanted:
        index.train(np.ascontiguousarray(sample, dtype=np.float32))
    if plan.recipe == "opq":
        rotation.pq = None  # it does not own its quantiser
    return index


def encode(template: Any, vectors: np.ndarray) -> Any:
    """A new index of the template's kind with these vectors, (n, dim) of any float type, added chunk by chunk."""
    index = empty(template)
    extend(index, vectors)
    return index


def empty(template: Any) -> Any:
    """A new index of the template's kind."""
    faiss = faiss_module()
    if isinstance(template, SignIndex):
        return SignIndex(template.d)
    if isinstance(template, faiss.IndexHNSWCagra):  # whose clone is of the kind it was made from
        return faiss.deserialize_index(faiss.serialize_index(template))
    return faiss.clone_index(template)


def extend(index: Any, vectors: np.ndarray) -> None:
    """Add vectors, (n, dim) of any float type, chunk by chunk."""
    for start in range(0, len(vectors), CHUNK):
        index.add(np.ascontiguousarray(vectors[start : start + CHUNK], dtype=np.float32))


def widened(halves: np.ndarray) -> np.ndarray:
    """Finite float16 values as float32, which is exact; three times as fast as numpy's own way where rows are few."""
    bits = halves.view(np.int16).astype(np.int32)  # the sign fills what is above
    bits <<= 13  # the fraction of a float32 is 13 bits longer
    bits &= _SIGN_AND_HALF
    values = bits.view(np.float32)
    values *= _EXPONENTS_APART
    return values


def write(index: Any, file: Path) -> Stamp:
    """Write to a new file, and force it to the disk."""
    faiss = faiss_module()
    # FAISS's own writer takes a disk that is full when it closes its file for written.
    with NewFile(file) as new:
        writer = faiss.PyCallbackIOWriter(new.write)
        if isinstance(index, SignIndex):
            faiss.write_index_binary(index.binary, writer)
        else:
            faiss.write_index(index, writer)
    return new.stamp


def read(file: Path, plan: Plan, *, mapped: bool = True) -> Any:
    """Open what `write` wrote; check its checksum first, since FAISS trusts what it reads.

    Args:
        file: The index.
        plan: How its vectors are stored.
        mapped: Leave the vectors on the disk; FAISS aborts the process when vectors are added to such an index.
    """
    faiss = faiss_module()
    if plan.recipe == "binary":
        return SignIndex(plan.dim, faiss.read_index_binary(str(file), faiss.IO_FLAG_MMAP_IFC if mapped else 0))
    return faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC if mapped else 0)


def write_flat(chunks: Iterable[np.ndarray], count: int, dim: int, file: Path) -> Stamp:
    """Like `write`, for a flat index of `count` vectors, that come as (n, dim) arrays and are never held all at once.

    FAISS can only write an index that it holds: the file is its header with other counts, then the vectors.
    """
    faiss = faiss_module()
    one = faiss.IndexFlat(dim, faiss.METRIC_INNER_PRODUCT)
    one.add(np.zeros((1, dim), dtype=np.float32))
    header = bytearray(faiss.serialize_index(one).tobytes()[: -4 * dim])
    struct.pack_into("<q", header, 8, count)
    struct.pack_into("<Q", header, len(header) - 8, count * dim)
    with NewFile(file) as new:
        new.write(header)
        for vectors in chunks:
            new.write(np.ascontiguousarray(vectors, dtype="<f4").data)
    return new.stamp


def join(files: Sequence[Path], kept: Sequence[np.ndarray], plan: Plan, file: Path) -> Stamp:
    """Like `write`, for the codes of several files as they are, one after another; of codes made of codes some differ.

    Args:
        files: Indexes of one recipe, and of one training.
        kept: For each of them a mask over its positions, False for those that are left out.
        plan: The recipe; a graph cannot be joined to another.
        file: To write.
    """
    if plan.recipe == "flat":
        parts = ((read(part, plan), mask) for part, mask in zip(files, kept, strict=True))
        return write_flat(
            (flat_view(index)[some] for index, mask in parts for some in runs(mask)),
            sum(int(np.count_nonzero(mask)) for mask in kept),
            plan.dim,
            file,
        )
    whole = read(files[0], plan, mapped=False)
    whole.reset()
    for part, mask in zip(files, kept, strict=True):
        other = read(part, plan, mapped=False)
        if plan.recipe == "binary":
            whole.binary.add(np.ascontiguousarray(other.codes[mask]))
        elif (ivf := _ivf(other)) is not None:
            _copy_cells(ivf, mask, _ivf(whole))
            whole.ntotal = _ivf(whole).ntotal
        else:
            other.remove_ids(selector(~mask))
            whole.merge_from(other, 0)
    return write(whole, file)


def _copy_cells(source: Any, kept: np.ndarray, target: Any) -> None:
    """Add some codes of an inverted file to another; FAISS's own ways keep the numbers of those left out free."""
    faiss = faiss_module()
    numbers = target.ntotal + np.cumsum(kept, dtype=np.int64) - 1
    lists = source.invlists
    for cell in range(source.nlist):
        if not (size := lists.list_size(cell)):
            continue
        positions = faiss.rev_swig_ptr(lists.get_ids(cell), size)
        codes = faiss.rev_swig_ptr(lists.get_codes(cell), size * lists.code_size).reshape(size, -1)
        there = kept[positions]
        added = np.ascontiguousarray(numbers[positions[there]]), np.ascontiguousarray(codes[there])
        if len(added[0]):
            target.invlists.add_entries(cell, len(added[0]), *map(faiss.swig_ptr, added))
    target.ntotal += int(np.count_nonzero(kept))


def runs(kept: np.ndarray) -> Iterator[slice | np.ndarray]:
    """The positions that a mask keeps, at most CHUNK at a time; as slices, which copy nothing, where all are kept."""
    for start in range(0, len(kept), CHUNK):
        some = kept[start : start + CHUNK]
        yield slice(start, start + len(some)) if some.all() else start + np.flatnonzero(some)


def flat_view(index: Any) -> np.ndarray:
    """(ntotal, dim) float32, the vectors of a flat index where they lie; of no use once the index is gone."""
    vectors = np.asarray(faiss_module().rev_swig_ptr(index.get_xb(), index.ntotal * index.d)).reshape(-1, index.d)
    vectors.flags.writeable = False  # they may be a mapped file
    return vectors


def _ivf(index: Any) -> Any:
    """The inverted file inside an index, or None."""
    faiss = faiss_module()
    found = faiss.try_extract_index_ivf(index)
    return None if found is None else faiss.downcast_index(found)


class Segment(Protocol):
    """Rows of the whole, in ascending order, with their index."""

    first_row: int
    count: int

    @property
    def index(self) -> Any:
        """The FAISS index, its file checked."""

    @property
    def rows(self) -> np.ndarray | None:
        """(count,) int64, the row of every position; None when they follow each other from `first_row`."""

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """(n, dim) float32, as exact as they are kept."""


def search(
    segments: Sequence[Segment],
    queries: np.ndarray,
    k: int,
    *,
    plan: Plan,
    tuning: Tuning | None = None,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows over all segments.

    Args:
        segments: What to search.
        queries: (n_queries, dim) float32, unit length where rows are.
        k: Rows a query.
        plan: How the vectors are stored.
        tuning: How hard to search.
        allowed: (rows,) bool by row, True for those that may be found; None allows all.

    Returns:
        (rows, scores): int64 and float32, each (n_queries, at most k), best first; equal scores by row. A query for
        which fewer are found has row -1 and score -inf at its end.
    """
    tuning = tuning or Tuning()
    k = min(k, sum(segment.count for segment in segments))
    if k == 0 or len(queries) == 0:
        return np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if queries.shape[1] != plan.dim:
        raise InputError(
            f"queries are {queries.shape[1]} wide but the index holds rows of {plan.dim}; "
            "embed them with the model that the index was built with"
        )
    exact = RECIPES[plan.recipe].exact
    if plan.recipe in ("rabitq", "binary"):
        # Where a filter leaves few rows they are scored by their vectors: all are, or scores could not be compared.
        tuning = replace(tuning, rerank=max(1, tuning.rerank))
    depth = k + 1 if exact else k * max(1, tuning.rerank)
    rows, scores, unsure = _search_to(depth, segments, queries, k, plan, tuning, allowed)
    # Of rows that tie at its cut FAISS keeps any: look deeper until the tie ends.
    while exact and len(tied := np.flatnonzero(unsure)):
        depth *= 8
        rows[tied], scores[tied], unsure[tied] = _search_to(depth, segments, queries[tied], k, plan, tuning, allowed)
    return rows, scores


def _search_to(
    depth: int,
    segments: Sequence[Segment],
    queries: np.ndarray,
    k: int,
    plan: Plan,
    tuning: Tuning,
    allowed: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k best of `depth` rows a segment; and for each query whether an equal of the last one may be left out."""
    rows, scores = [np.empty((len(queries), 0), np.int64)], [np.empty((len(queries), 0), np.float32)]
    lowest = np.full(len(queries), -np.inf, dtype=np.float32)
    for segment in segments:
        mask = None if allowed is None else allowed[_rows(segment)]
        count = segment.count if mask is None else int(np.count_nonzero(mask))
        if count == 0:
            continue
        if mask is not None and count <= max(FEW, EXACT_BELOW * segment.count):
            found_scores, found = _one_by_one(segment, queries, np.flatnonzero(mask), min(depth, count))
        else:
            chosen = None if mask is None or count == segment.count else mask
            found_scores, found = _scan(segment.index, queries, min(depth, count), plan, tuning, chosen, count)
            if tuning.rerank:
                found_scores = _exact_scores(segment, queries, found)
        if depth < count:
            lowest = np.maximum(lowest, found_scores[:, -1])
        missing = found < 0
        found = _rows(segment, found)
        if missing.any():
            found_scores[missing] = -np.inf
            found[missing] = -1
        rows.append(found)
        scores.append(found_scores)
    all_rows, all_scores = np.concatenate(rows, axis=1), np.concatenate(scores, axis=1)
    order = np.lexsort((all_rows, -all_scores), axis=1)[:, :k]
    each = np.arange(len(queries))[:, None]  # take_along_axis takes as long as a small search
    best_rows, best = all_rows[each, order], all_scores[each, order]
    if best.shape[1] < k:  # as wide as asked, so that a deeper look fits in its place
        short = ((0, 0), (0, k - best.shape[1]))
        best_rows = np.pad(best_rows, short, constant_values=-1)
        best = np.pad(best, short, constant_values=-np.inf)
    return best_rows, best, (lowest >= best[:, -1]) & np.isfinite(lowest)


def _scan(
    index: Any, queries: np.ndarray, k: int, plan: Plan, tuning: Tuning, mask: np.ndarray | None, allowed: int
) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's own search; farther than without a mask where it would miss most of the `allowed` that a mask leaves."""
    hidden = 0 if mask is None else len(mask) - allowed
    if mask is not None and k + hidden <= getattr(index, "most", 0):  # on a GPU, which takes no selectors
        scores, found = index.search(queries, k + hidden, params=parameters(plan, tuning))
        return _without(scores, found, k, mask)
    if mask is not None and allowed < NEARLY_ALL * len(mask):
        original = getattr(index, "original", index)  # of a copy on a GPU, which takes no selectors
        if plan.lists > tuning.probes:
            return filtered.in_cells(original, queries, k, mask, selector(mask), tuning.probes)
        if RECIPES[plan.recipe].graph:
            return filtered.in_graph(original, queries, k, allowed, selector(mask), tuning.ef)
    scores, found = index.search(queries, k, params=parameters(plan, tuning, mask))
    return scores, found


def _without(scores: np.ndarray, found: np.ndarray, k: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k best of what was found that a mask allows."""
    scores = np.where((found >= 0) & mask[found], scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores, found = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
    return scores, np.where(np.isneginf(scores), -1, found)


def parameters(plan: Plan, tuning: Tuning, mask: np.ndarray | None = None) -> Any:
    """What FAISS's search takes beside queries and k, or None; `mask` is by position, True for those to be found."""
    if mask is None:
        return _without_mask(plan, tuning)
    return _parameters(plan, tuning, selector(mask))


def selector(mask: np.ndarray) -> Any:
    """What FAISS takes for a mask by position."""
    return faiss_module().IDSelectorBitmap(np.packbits(mask, bitorder="little"))


@lru_cache(maxsize=64)  # a tenth of what one query takes in a small index
def _without_mask(plan: Plan, tuning: Tuning) -> Any:
    return _parameters(plan, tuning, None)


def _parameters(plan: Plan, tuning: Tuning, selector: Any) -> Any:
    faiss = faiss_module()
    # By the plan and not by the index, which may be a copy on a GPU.
    if "IVF" in plan.factory:
        inner = faiss.SearchParametersIVF(nprobe=max(1, min(tuning.probes, plan.lists)), sel=selector)
        return faiss.SearchParametersPreTransform(index_params=inner) if plan.transformed else inner
    if RECIPES[plan.recipe].graph:
        return faiss.SearchParametersHNSW(efSearch=tuning.ef, sel=selector)
    return None if selector is None else faiss.SearchParameters(sel=selector)


def _rows(segment: Segment, positions: np.ndarray | None = None) -> Any:
    """The rows of some positions of a segment, or of all; negative positions give anything."""
    if segment.rows is None:
        if positions is None:
            return slice(segment.first_row, segment.first_row + segment.count)
        return positions + segment.first_row
    return np.asarray(segment.rows) if positions is None else np.asarray(segment.rows)[positions]


def _one_by_one(segment: Segment, queries: np.ndarray, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of some positions, every one of them scored."""
    best_scores, best = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(positions), CHUNK):
        some = positions[start : start + CHUNK]
        # A few at a time stay in the processor's cache on their way.
        parts = [queries @ segment.vectors(some[n : n + FEW]).T for n in range(0, len(some), FEW)]
        scores = np.concatenate([best_scores, *parts], axis=1)
        rows = np.concatenate([best, np.broadcast_to(some, (len(queries), len(some)))], axis=1)
        if scores.shape[1] > 2 * k:
            chosen = np.argpartition(-scores, k, axis=1)[:, :k]
            scores, rows = np.take_along_axis(scores, chosen, 1), np.take_along_axis(rows, chosen, 1)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        best_scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return best_scores, best


def _exact_scores(segment: Segment, queries: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(n_queries, n) float32, the scores of found positions by their vectors; of negative ones anything."""
    scores = np.empty(found.shape, dtype=np.float32)
    for query, positions, row in zip(queries, np.maximum(found, 0), scores, strict=True):
        np.dot(segment.vectors(positions), query, out=row)
    return scores


def reconstructed(index: Any, positions: np.ndarray) -> np.ndarray:
    """(n, dim) float32, what an index knows of some vectors."""
    if not isinstance(index, SignIndex) and (ivf := _ivf(index)) is not None and ivf.direct_map.type == 0:
        ivf.make_direct_map()
    if not len(positions):
        return np.empty((0, index.d), np.float32)
    return np.asarray(index.reconstruct_batch(np.ascontiguousarray(positions, dtype=np.int64)), dtype=np.float32)


def chunks(segment: Segment, size: int = CHUNK) -> Iterator[np.ndarray]:
    """All vectors of a segment, some at a time."""
    for start in range(0, segment.count, size):
        yield segment.vectors(np.arange(start, min(start + size, segment.count)))
