"""How vectors are stored, by name: each recipe a line of data.

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
        factory: FAISS factory string with {m} for the bytes of a product-quantised code and {cells} for the cells of
            an inverted file; "" where FAISS has no factory string.
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
        """Whether it gives the vectors back to half precision at least."""
        return self.name in ("flat", "fp16") or self.graph

    @property
    def graph(self) -> bool:
        """Whether vectors are linked to their neighbours, so that neither time nor codes follow from their number."""
        return self.tuned == "efSearch"


# "IVF1" in front of a product quantiser: FAISS's plain one takes no filter, an inverted file with one cell does.
# "np" behind it: no polysemous training, which takes most of the time and orders centroids for a search not done here.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("flat", "Flat", "float32, exact", gpu=True),
        Recipe("fp16", "SQfp16", "half precision, exact for all practical purposes", gpu=True),
        Recipe("int8", "SQ8", "8 bits a dimension", per_centroid=10_000, gpu=True),
        Recipe("pq", "IVF1,PQ{m}np", "product quantiser", per_centroid=39, gpu=True),
        Recipe("opq", "OPQ{m},IVF1,PQ{m}np", "product quantiser after a learnt rotation", per_centroid=39, gpu=True),
        Recipe("ivf-pq", "IVF{cells},PQ{m}np", "product quantiser in cells", per_centroid=39, tuned="nprobe", gpu=True),
        Recipe("ivf-int8", "IVF{cells},SQ8", "8 bits a dimension in cells", per_centroid=39, tuned="nprobe", gpu=True),
        Recipe("rabitq", "IVF1,RaBitQ", "1 bit a dimension, with corrections", per_centroid=100),
        Recipe("binary", "", "1 bit a dimension, the sign", gpu=True),
        Recipe("hnsw", "HNSW32,SQfp16", "graph over half precision: fast, large", tuned="efSearch"),
        Recipe("cagra", "", "graph over float32, made and searched on a GPU with cuVS", tuned="efSearch", gpu=True),
    )
}

_SPELLING = re.compile(r"(?:pca(\d+)-)?([a-z0-9-]+?)(?::(\d+))?")

SHRUNK = ("pq", "ivf-pq", "ivf-int8")
"""Recipes whose codes can be made of principal components, for vectors so wide that learning takes too long."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe with its numbers filled in for vectors of one width.

    Args:
        recipe: Its name.
        dim: Width of the vectors.
        code: Bytes of a product-quantised code; 0 where there is none.
        cells: Cells of the inverted file; 0 where there is none.
        width: Principal components that codes are made of; 0 makes them of the vectors.
    """

    recipe: str
    dim: int
    code: int = 0
    cells: int = 0
    width: int = 0

    @property
    def spelling(self) -> str:
        """How a user asks for it, such as "pq:48" or "pca512-pq:64"."""
        return (f"pca{self.width}-" if self.width else "") + self.recipe + (f":{self.code}" if self.code else "")

    @property
    def factory(self) -> str:
        """The FAISS factory string."""
        first = f"PCA{self.width}," if self.width else ""
        return first + RECIPES[self.recipe].factory.format(m=self.code, cells=self.cells)

    @property
    def transformed(self) -> bool:
        """Whether vectors are turned before they are coded."""
        return bool(self.width) or self.recipe == "opq"

    @property
    def wanted(self) -> int:
        """Training vectors that the recipe wants; 0 for none."""
        per_centroid = RECIPES[self.recipe].per_centroid
        centroids = max(256 if self.code else 1, self.cells)
        return max(per_centroid * centroids, 10 * self.dim if self.width else 0)

    @property
    def needed(self) -> int:
        """Training vectors below which FAISS refuses, or makes a code of no use."""
        # With fewer vectors than dimensions, FAISS's OPQMatrix writes past its memory and takes the process down.
        rotated = self.dim if self.recipe == "opq" else 0
        return max(256 if self.code else 0, self.cells, self.width, rotated, bool(RECIPES[self.recipe].per_centroid))


def plan(text: str, dim: int, count: int) -> Plan:
    """Fill in a recipe's numbers.

    Args:
        text: A name of :data:`RECIPES`, maybe with the bytes of a code: "pq:64". Without, a code takes dim / 8 bytes,
            which is 32 times smaller than float32, or the next number that divides the width. With "pca512-" before it,
            codes are made of that many principal components.
        dim: Width of the vectors.
        count: How many there are or will be; decides the number of cells.

    Raises:
        ValueError: There is no such recipe, or its code does not fit the width.
    """
    found = _SPELLING.fullmatch(text.strip().lower())
    name = found[2] if found else ""
    if name not in RECIPES:
        raise InputError(f"recipe is {text!r}; expected one of {', '.join(RECIPES)}, some with bytes, such as pq:64")
    recipe = RECIPES[name]
    asked = int(found[3]) if found and found[3] else None
    width = int(found[1]) if found and found[1] else 0
    if found and found[1] and (name not in SHRUNK or not 1 <= width < dim):
        raise InputError(
            f"{text}: pca goes before {', '.join(SHRUNK)}, with fewer components than the {dim} dimensions, such as "
            f"pca{max(1, dim // 4)}-pq"
        )
    coded = width or dim
    if "{m}" not in recipe.factory:
        if asked is not None:
            raise InputError(f"recipe {name} has no bytes to choose; write {name} alone")
        return Plan(name, dim, 0, _cells(count) if "{cells}" in recipe.factory else 0, width)
    if asked is not None and (not 1 <= asked <= coded or coded % asked):
        near = min(codes(coded), key=lambda size: (abs(size - asked), size))
        raise InputError(f"{text}: {asked} bytes do not divide a width of {coded}; the nearest that do: {name}:{near}")
    code = asked or min(codes(coded), key=lambda size: (abs(size - coded / 8), size))
    return Plan(name, dim, code, _cells(count) if "{cells}" in recipe.factory else 0, width)


def recipe_of(spelling: str) -> Recipe:
    """The recipe of a spelling that `Plan.spelling` gave, without its numbers: "pca512-pq:64" is pq."""
    found = _SPELLING.fullmatch(spelling)
    if not found or found[2] not in RECIPES:
        raise InputError(f"recipe is {spelling!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[found[2]]


def codes(dim: int) -> list[int]:
    """Bytes that a product-quantised code of this width can have."""
    return [size for size in range(1, dim + 1) if dim % size == 0]


def _cells(count: int) -> int:
    """Four times the root, as FAISS's guide has it, but never so many that a cell has no 39 to be trained with."""
    return max(1, min(int(4 * math.sqrt(count)), count // 39))
