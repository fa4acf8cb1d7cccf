"""How vectors are stored, by name, and how hard they are searched. Each recipe is a line of data.

Code sizes, training needs and what FAISS can do with each kind were measured with faiss 1.15.1 (see docs/design.md).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from searchkit.indexer.errors import InputError


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to store vectors.

    Args:
        name: As users write it.
        factory: FAISS factory string with {m} for the bytes of a product-quantized code and {lists} for the number of
            IVF lists; "" where FAISS has no factory string.
        about: One line for users.
        per_centroid: Training vectors that every centroid wants; 0 needs no training.
        tuned: The FAISS search parameter that trades recall for time, or None.
        gpu: Whether FAISS searches it on a GPU.
    """

    name: str
    factory: str
    about: str
    per_centroid: int = 0
    tuned: str | None = None
    gpu: bool = False

    @property
    def exact(self) -> bool:
        """Whether it holds the vectors as they are, in float32."""
        return self.name == "flat"

    @property
    def faithful(self) -> bool:
        """Whether it returns the vectors to at least half precision."""
        return self.name in ("flat", "fp16") or self.graph

    @property
    def graph(self) -> bool:
        """Whether vectors are linked to their neighbours, so that search time hardly grows with the count."""
        return self.tuned == "efSearch"


# "IVF1" before a product quantizer: FAISS's plain one takes no filter, an inverted file with one list does.
# "np" after it: no polysemous training, which takes most of the time and orders centroids for a search not done here.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("flat", "Flat", "float32, exact", gpu=True),
        Recipe("fp16", "SQfp16", "half precision, exact for all practical purposes", gpu=True),
        Recipe("int8", "SQ8", "8 bits per dimension", per_centroid=10_000, gpu=True),
        Recipe("pq", "IVF1,PQ{m}np", "product quantizer", per_centroid=39, gpu=True),
        Recipe("opq", "OPQ{m},IVF1,PQ{m}np", "product quantizer after a trained rotation", per_centroid=39, gpu=True),
        Recipe(
            "ivf-pq", "IVF{lists},PQ{m}np", "product quantizer in IVF lists", per_centroid=39, tuned="nprobe", gpu=True
        ),
        Recipe(
            "ivf-int8", "IVF{lists},SQ8", "8 bits per dimension in IVF lists", per_centroid=39, tuned="nprobe", gpu=True
        ),
        Recipe("rabitq", "IVF1,RaBitQ", "1 bit per dimension, with corrections", per_centroid=100),
        Recipe("binary", "", "1 bit per dimension, the sign", gpu=True),
        Recipe("hnsw", "HNSW32,SQfp16", "graph over half precision: fast, large", tuned="efSearch"),
        Recipe("cagra", "", "graph over float32, built and searched on a GPU with cuVS", tuned="efSearch", gpu=True),
    )
}

_SPELLING = re.compile(r"(?:pca(\d+)-)?([a-z0-9-]+?)(?::(\d+))?")

SHRUNK = ("pq", "ivf-pq", "ivf-int8")
"""Recipes that can code principal components instead, for vectors so wide that training takes too long."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe with its numbers filled in for vectors of one width.

    Args:
        recipe: Its name.
        dim: Width of the vectors.
        code: Bytes of a product-quantized code; 0 where there is none.
        lists: IVF lists; 0 where there are none.
        width: Principal components that are coded; 0 codes the vectors themselves.
    """

    recipe: str
    dim: int
    code: int = 0
    lists: int = 0
    width: int = 0

    @property
    def spelling(self) -> str:
        """How a user asks for it, such as "pq:48" or "pca512-pq:64"; `plan` reads it back."""
        return (f"pca{self.width}-" if self.width else "") + self.recipe + (f":{self.code}" if self.code else "")

    @property
    def factory(self) -> str:
        """The FAISS factory string."""
        first = f"PCA{self.width}," if self.width else ""
        return first + RECIPES[self.recipe].factory.format(m=self.code, lists=self.lists)

    @property
    def transformed(self) -> bool:
        """Whether vectors are rotated before they are coded."""
        return bool(self.width) or self.recipe == "opq"

    @property
    def held(self) -> int:
        """Bytes of a vector that are in memory while an index is written or merged: of its code, its number and links.

        Exact vectors are streamed.
        """
        numbers = 8 if "IVF" in self.factory else 0
        coded = {
            "flat": 0,
            "fp16": 2 * self.dim,
            "int8": self.dim,
            "ivf-int8": self.width or self.dim,
            "rabitq": self.dim // 8 + 8,
            "binary": self.dim // 8,
            "hnsw": 2 * self.dim + 320,  # 64 links at the lowest level, some above
            "cagra": 4 * self.dim + 512,
        }
        return numbers + coded.get(self.recipe, self.code)

    @property
    def wanted(self) -> int:
        """Training vectors that the recipe wants; 0 for none."""
        per_centroid = RECIPES[self.recipe].per_centroid
        centroids = max(256 if self.code else 1, self.lists)
        return max(per_centroid * centroids, 10 * self.dim if self.width else 0)

    @property
    def needed(self) -> int:
        """Training vectors below which FAISS refuses to train, or produces useless codes."""
        # With fewer vectors than dimensions, FAISS's OPQMatrix writes past its memory and takes the process down.
        rotated = self.dim if self.recipe == "opq" else 0
        trained = 1 if RECIPES[self.recipe].per_centroid else 0
        return max(256 if self.code else 0, self.lists, self.width, rotated, trained)


def plan(text: str, dim: int, count: int) -> Plan:
    """Fill in a recipe's numbers.

    Args:
        text: A name of :data:`RECIPES`, optionally with the bytes of a code: "pq:64". Without them a code takes dim / 8
            bytes, which is 32 times smaller than float32, or the nearest size that divides the width. With "pca512-"
            before it, that many principal components are coded.
        dim: Width of the vectors.
        count: How many there are or will be; decides the number of IVF lists.

    Raises:
        InputError: There is no such recipe, or its code does not fit the width.
    """
    match = _SPELLING.fullmatch(text.strip().lower())
    if not match or match[2] not in RECIPES:
        raise InputError(f"recipe is {text!r}; expected one of {', '.join(RECIPES)}, some with bytes, such as pq:64")
    name, recipe = match[2], RECIPES[match[2]]
    width, code = int(match[1] or 0), int(match[3]) if match[3] else None
    if match[1] and (name not in SHRUNK or not 1 <= width < dim):
        raise InputError(
            f"{text}: pca goes before {', '.join(SHRUNK)}, with fewer components than the {dim} dimensions, such as "
            f"pca{max(1, dim // 4)}-pq"
        )
    lists = _lists(count) if "{lists}" in recipe.factory else 0
    if "{m}" not in recipe.factory:
        if code is not None:
            raise InputError(f"recipe {name} has no code size to choose; write {name} alone")
        return Plan(name, dim, 0, lists, width)
    coded = width or dim
    if code is not None and (not 1 <= code <= coded or coded % code):
        raise InputError(
            f"{text}: {code} bytes do not divide a width of {coded}; the nearest that do: {name}:{nearest(coded, code)}"
        )
    return Plan(name, dim, code or nearest(coded, coded / 8), lists, width)


def recipe_of(spelling: str) -> Recipe:
    """The recipe behind `Plan.spelling`, without its numbers: "pca512-pq:64" is pq."""
    match = _SPELLING.fullmatch(spelling)
    if not match or match[2] not in RECIPES:
        raise InputError(f"recipe is {spelling!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[match[2]]


def codes(dim: int) -> list[int]:
    """Bytes that a product-quantized code of this width can have."""
    return [size for size in range(1, dim + 1) if dim % size == 0]


def nearest(dim: int, size: float) -> int:
    """The possible size of a product-quantized code that is nearest to a size; the smaller of two."""
    return min(codes(dim), key=lambda code: (abs(code - size), code))


def _lists(count: int) -> int:
    """Four times the square root, as FAISS's guide has it, but never so many that a list has no 39 to train on."""
    return max(1, min(int(4 * math.sqrt(count)), count // 39))


@dataclass(frozen=True, slots=True)
class Tuning:
    """How hard compressed vectors are searched.

    Args:
        probes: IVF lists visited, for recipes with lists.
        ef: Breadth of the search in a graph.
        rerank: Candidates, as a multiple of k, that are scored again by their exact vectors; more in large indexes, 0
            does not.
    """

    probes: int = 16
    ef: int = 64
    rerank: int = 0


_READ = 4_200_000
"""Bytes of codes that a search reads without a measured tuning, where more lists are visited than the square root."""


def default_tuning(plan: Plan, *, keep_vectors: bool) -> Tuning:
    """What suits a recipe where nothing was measured."""
    coarse = plan.code or plan.recipe in ("rabitq", "binary")
    # Signs say more about a row when the query keeps its numbers.
    rerank = 10 if coarse and (keep_vectors or plan.recipe == "binary") else 0
    return Tuning(probes=_probes(plan), rerank=rerank)


def _probes(plan: Plan) -> int:
    """Lists to visit: four times the square root of all as long as that reads little, and the root at least.

    On real vectors a constant number of roots keeps recall nearly constant while an index grows, and one is too few:
    docs/guides/compression.md.
    """
    root, each = math.sqrt(plan.lists), max(39, plan.lists / 16)  # vectors of a list, see `_lists`
    affordable = _READ / (each * (plan.code or plan.width or plan.dim))
    return max(1, min(plan.lists, round(max(root, min(4 * root, affordable)))))
