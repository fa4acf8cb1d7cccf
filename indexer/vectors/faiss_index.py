"""FAISS on the CPU, by inner product."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.indexer.allowed import AllowedRows
from searchkit.indexer.errors import InputError
from searchkit.indexer.files import NewFile, Stamp
from searchkit.indexer.vectors import faiss_filtered as filtered
from searchkit.indexer.vectors.arrays import CHUNK, runs
from searchkit.indexer.vectors.backend import VectorBackend, VectorIndex
from searchkit.indexer.vectors.faiss_codes import Places, add_codes, by_value, copy_lists, flat_codes, inverted_file
from searchkit.indexer.vectors.faiss_library import faiss_module
from searchkit.indexer.vectors.recipes import RECIPES, Plan, Tuning

logger = logging.getLogger(__name__)

NEARLY_ALL = 0.99
"""Share of allowed rows from which lists and graphs are searched as without a filter, such as after few deletions."""

CAGRA_LINKS = 64
"""Neighbours of a vector in a graph built by cuVS, as many as FAISS asks it for."""


class SignIndex:
    """One bit per dimension, its sign, with the methods of FAISS's indexes, whose binary ones take other arrays.

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
        """(scores, positions), each (n_queries, k), best first; -1 where there are fewer."""
        distances, positions = self.binary.search(np.packbits(queries > 0, axis=1), k, params=params)
        return (1 - 2 * distances / self.d).astype(np.float32), positions

    def reconstruct_batch(self, positions: np.ndarray) -> np.ndarray:
        """The signs of some vectors as unit vectors."""
        signs = np.unpackbits(self.codes[positions], axis=1, count=self.d).astype(np.float32) * 2 - 1
        return np.asarray(signs / np.sqrt(self.d), dtype=np.float32)

    @property
    def codes(self) -> np.ndarray:
        """(ntotal, bytes) uint8, a view."""
        size = self.binary.code_size
        return np.asarray(faiss_module().rev_swig_ptr(self.binary.xb.data(), self.ntotal * size)).reshape(-1, size)

    def reset(self) -> None:
        """Remove all vectors."""
        self.binary.reset()


class FaissIndex(VectorIndex):
    """Vectors in an index of FAISS, searched on the CPU.

    Args:
        plan: How they are stored.
        raw: FAISS's index, or a SignIndex.
    """

    def __init__(self, plan: Plan, raw: Any) -> None:
        self._plan, self.raw = plan, raw
        self._places: Places | None = None

    @property
    def plan(self) -> Plan:
        """How the vectors are stored."""
        return self._plan

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.raw.d)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in a file."""
        faiss = faiss_module()
        if isinstance(self.raw, SignIndex):
            return int(faiss.serialize_index_binary(self.raw.binary).nbytes)
        return int(faiss.serialize_index(self.raw).nbytes)

    def __len__(self) -> int:
        """Vectors held."""
        return int(self.raw.ntotal)

    def add(self, vectors: np.ndarray) -> None:
        """Add (n, dim) vectors, chunk by chunk."""
        add(self.raw, vectors)

    def search(
        self, queries: np.ndarray, k: int, *, tuning: Tuning, allowed: AllowedRows | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best positions; farther than without a filter where it would miss most of the allowed ones."""
        if allowed is None:
            scores, positions = self.raw.search(queries, k, params=unfiltered(self._plan, tuning))
            return positions, scores
        selector = allowed.derived("selector", lambda: selector_of(allowed.mask))
        if allowed.count < NEARLY_ALL * len(allowed):
            if self._plan.lists > tuning.probes:
                lists = self._lists
                held = allowed.derived((self, "held"), lambda: lists.counted(allowed.mask))
                return filtered.in_lists(self.raw, lists.centroids, held, queries, k, selector, tuning.probes)
            if RECIPES[self._plan.recipe].graph:
                return filtered.in_graph(self.raw, queries, k, allowed.count, selector, tuning.ef)
        scores, positions = self.raw.search(queries, k, params=parameters(self._plan, tuning, selector))
        return positions, scores

    def vectors(self, positions: np.ndarray | slice) -> np.ndarray:
        """(n, dim) float32, decoded; slices of exact vectors are views."""
        if isinstance(positions, slice):
            if RECIPES[self._plan.recipe].exact:
                return flat_view(self.raw)[positions]
            positions = np.arange(positions.start, positions.stop)
        if not len(positions):
            return np.empty((0, self.dim), np.float32)
        if self._inverted is not None and self._inverted.direct_map.type == 0:
            self._inverted.make_direct_map()
        positions = np.ascontiguousarray(positions, dtype=np.int64)
        return np.asarray(self.raw.reconstruct_batch(positions), dtype=np.float32)

    def score(self, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(n,) float32 inner products."""
        return np.asarray(self.vectors(positions) @ query)

    def empty(self) -> FaissIndex:
        """A new index of the same training, without vectors."""
        return FaissIndex(self._plan, emptied(self.raw))

    def save(self, file: Path) -> Stamp:
        """Write it to a new file and force that to the disk."""
        faiss = faiss_module()
        # FAISS's own writer takes a file for written although the disk was full when it was closed.
        with NewFile(file) as new:
            writer = faiss.PyCallbackIOWriter(new.write)
            if isinstance(self.raw, SignIndex):
                faiss.write_index_binary(self.raw.binary, writer)
            else:
                faiss.write_index(self.raw, writer)
        return new.stamp

    def codes(self, positions: np.ndarray, scratch: Path) -> tuple[np.ndarray, np.ndarray]:
        """The IVF lists (n,), zeros where there are none, and the codes (n, bytes) of some vectors; not of a graph.

        Args:
            positions: (n,) int64.
            scratch: A folder for a file that grows with the index, and has no name in it.
        """
        if self._inverted is None:
            codes = self.raw.codes if isinstance(self.raw, SignIndex) else flat_codes(self.raw)
            return np.zeros(len(positions), np.int32), codes[positions]
        if self._places is None:
            self._places = Places(self._inverted, scratch)
        return self._places.codes(positions)

    def add_codes(self, lists: np.ndarray, codes: np.ndarray) -> None:
        """Add what `codes` returned of indexes of the same training."""
        if isinstance(self.raw, SignIndex):
            self.raw.binary.add(codes)
        elif self._inverted is None:
            self.raw.add_sa_codes(codes)
        else:
            add_codes(self._inverted, lists, codes)
            self.raw.ntotal = self._inverted.ntotal

    @cached_property
    def _inverted(self) -> Any:
        return None if isinstance(self.raw, SignIndex) else inverted_file(self.raw)

    @cached_property
    def _lists(self) -> filtered.Lists:
        return filtered.sampled_lists(self._inverted)


class FaissBackend(VectorBackend):
    """FAISS on the CPU."""

    def train(self, plan: Plan, sample: np.ndarray) -> FaissIndex:
        """An empty, trained index."""
        if plan.recipe == "cagra":
            logger.warning(
                "graphs of cagra will be built on the CPU, which takes long: no GPU is used; ask for one: --device cuda"
            )
        return train(plan, sample)

    def build(self, template: VectorIndex, batches: Iterable[np.ndarray], count: int) -> VectorIndex:
        """A new index of a template's training with these vectors."""
        index = template.empty()
        for batch in batches:
            index.add(batch)
        return index

    def write(self, template: VectorIndex, batches: Iterable[np.ndarray], count: int, file: Path) -> Stamp:
        """Write an index of a template's training with these vectors."""
        if RECIPES[template.plan.recipe].exact:
            return write_flat(batches, count, template.plan.dim, file)
        return self.build(template, batches, count).save(file)

    def open(self, file: Path, plan: Plan, *, mapped: bool = True) -> FaissIndex:
        """Open an index; FAISS aborts the process when vectors are added to a mapped one."""
        return FaissIndex(plan, read(file, plan, mapped=mapped))

    def merge(self, files: Sequence[Path], kept: Sequence[np.ndarray], plan: Plan, file: Path) -> Stamp:
        """Write one index with the codes of several."""
        if RECIPES[plan.recipe].exact:
            parts = ((read(part, plan), mask) for part, mask in zip(files, kept, strict=True))
            return write_flat(
                (flat_view(raw)[run] for raw, mask in parts for run in runs(mask)),
                sum(int(np.count_nonzero(mask)) for mask in kept),
                plan.dim,
                file,
            )
        whole = read(files[0], plan, mapped=False)
        whole.reset()
        for part, mask in zip(files, kept, strict=True):
            raw = read(part, plan, mapped=False)
            if isinstance(raw, SignIndex):
                whole.binary.add(np.ascontiguousarray(raw.codes[mask]))
            elif (source := inverted_file(raw)) is not None:
                target = inverted_file(whole)
                copy_lists(source, mask, target)
                whole.ntotal = target.ntotal
            else:
                raw.remove_ids(selector_of(~mask))
                whole.merge_from(raw, 0)
        return FaissIndex(plan, whole).save(file)

    def gather(
        self,
        template: VectorIndex,
        sources: Sequence[VectorIndex],
        owners: np.ndarray,
        positions: np.ndarray,
        file: Path,
    ) -> Stamp:
        """Write one index with some vectors of several, in any order."""
        plan, parts = template.plan, by_value(owners)
        order = np.argsort(np.concatenate([chosen for _, chosen in parts]))
        if RECIPES[plan.recipe].exact or RECIPES[plan.recipe].graph:
            vectors = np.concatenate([sources[number].vectors(positions[chosen]) for number, chosen in parts])
            return self.write(template, [vectors[order]], len(vectors), file)
        whole = template.empty()
        assert isinstance(whole, FaissIndex)
        lists, codes = [], []
        for number, chosen in parts:
            source = sources[number]
            assert isinstance(source, FaissIndex)
            found = source.codes(positions[chosen], file.parent)
            lists.append(found[0])
            codes.append(found[1])
        whole.add_codes(np.concatenate(lists)[order], np.concatenate(codes)[order])
        return whole.save(file)

    def accelerates(self, plan: Plan) -> bool:
        """Never: no GPU is used."""
        return False

    def close(self) -> None:
        """Nothing to release."""


def train(plan: Plan, sample: np.ndarray) -> FaissIndex:
    """An empty index, trained on the CPU (see `VectorBackend.train`)."""
    if len(sample) < plan.needed:
        raise InputError(
            f"recipe {plan.spelling} needs {plan.needed} vectors or more to train on (it wants {plan.wanted}), and "
            f"there are {len(sample)}; add documents first, or use flat, fp16, int8, rabitq or binary"
        )
    if plan.recipe == "binary":
        return FaissIndex(plan, SignIndex(plan.dim))
    faiss = faiss_module()
    if plan.recipe == "cagra":
        return FaissIndex(plan, faiss.IndexHNSWCagra(plan.dim, CAGRA_LINKS // 2, faiss.METRIC_INNER_PRODUCT))
    # index_factory() and most constructors default to L2, whose distances are not similarities.
    index = faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
    if (inverted := inverted_file(index)) is not None:
        inverted.cp.min_points_per_centroid = 1  # `needed` and `wanted` stand for FAISS's warning
        if plan.code:
            inverted.pq.cp.min_points_per_centroid = 1
    if plan.recipe == "opq":
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.pq = quantizer = faiss.ProductQuantizer(plan.dim, plan.code, 8)
        quantizer.cp.min_points_per_centroid = 1
    if plan.width:
        # FAISS's PCA subtracts the mean, after which inner products are no longer those of the vectors: only rotate.
        components = faiss.downcast_VectorTransform(index.chain.at(0))
        components.train(np.ascontiguousarray(sample, dtype=np.float32))
        components.have_bias = False
    if plan.wanted:
        index.train(np.ascontiguousarray(sample, dtype=np.float32))
    if plan.recipe == "opq":
        rotation.pq = None  # it does not own its quantizer
    return FaissIndex(plan, index)


def emptied(raw: Any) -> Any:
    """A new index of FAISS's of the same training, without vectors."""
    faiss = faiss_module()
    if isinstance(raw, SignIndex):
        return SignIndex(raw.d)
    if isinstance(raw, faiss.IndexHNSWCagra):  # whose clone is of the kind it derives from
        copy = faiss.deserialize_index(faiss.serialize_index(raw))
    else:
        copy = faiss.clone_index(raw)
    if copy.ntotal:
        copy.reset()
    return copy


def add(raw: Any, vectors: np.ndarray) -> None:
    """Add vectors, (n, dim) of any float type, to an index of FAISS's, chunk by chunk."""
    for start in range(0, len(vectors), CHUNK):
        raw.add(np.ascontiguousarray(vectors[start : start + CHUNK], dtype=np.float32))


def read(file: Path, plan: Plan, *, mapped: bool = True) -> Any:
    """FAISS's index, or a SignIndex, from a file whose checksum matched: FAISS trusts what it reads."""
    faiss = faiss_module()
    flags = faiss.IO_FLAG_MMAP_IFC if mapped else 0
    if plan.recipe == "binary":
        return SignIndex(plan.dim, faiss.read_index_binary(str(file), flags))
    return faiss.read_index(str(file), flags)


def write_flat(batches: Iterable[np.ndarray], count: int, dim: int, file: Path) -> Stamp:
    """Write a flat index of `count` vectors that come as (n, dim) arrays and are never held all at once.

    FAISS can only write an index that it holds: the file is its header with other counts, then the vectors.
    """
    faiss = faiss_module()
    single = faiss.IndexFlat(dim, faiss.METRIC_INNER_PRODUCT)
    single.add(np.zeros((1, dim), dtype=np.float32))
    header = bytearray(faiss.serialize_index(single).tobytes()[: -4 * dim])
    struct.pack_into("<q", header, 8, count)
    struct.pack_into("<Q", header, len(header) - 8, count * dim)
    with NewFile(file) as new:
        new.write(header)
        for vectors in batches:
            new.write(np.ascontiguousarray(vectors, dtype="<f4").data)
    return new.stamp


def flat_view(raw: Any) -> np.ndarray:
    """(ntotal, dim) float32, the vectors of a flat index where they are; invalid once the index is gone."""
    vectors = np.asarray(faiss_module().rev_swig_ptr(raw.get_xb(), raw.ntotal * raw.d)).reshape(-1, raw.d)
    vectors.flags.writeable = False  # they may be a mapped file
    return vectors


def parameters(plan: Plan, tuning: Tuning, selector: Any = None) -> Any:
    """What FAISS's search takes beside queries and k, or None."""
    faiss = faiss_module()
    if "IVF" in plan.factory:
        inner = faiss.SearchParametersIVF(nprobe=max(1, min(tuning.probes, plan.lists)), sel=selector)
        return faiss.SearchParametersPreTransform(index_params=inner) if plan.transformed else inner
    if RECIPES[plan.recipe].graph:
        return faiss.SearchParametersHNSW(efSearch=tuning.ef, sel=selector)
    return None if selector is None else faiss.SearchParameters(sel=selector)


@lru_cache(maxsize=64)  # making them takes a tenth of one query in a small index
def unfiltered(plan: Plan, tuning: Tuning) -> Any:
    """The same without a filter."""
    return parameters(plan, tuning)


def selector_of(mask: np.ndarray) -> Any:
    """What FAISS takes for a mask by position."""
    return faiss_module().IDSelectorBitmap(np.packbits(mask, bitorder="little"))
