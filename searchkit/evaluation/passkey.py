"""How far into a long text a model reads: personalised passkey retrieval.

A hundred documents of equal length hide one person's passkey each somewhere in filler text. Fifty queries ask for a
person's passkey, and the first hit is right or wrong (after Wang et al., arXiv 2401.00368; the texts are our own).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from searchkit.errors import InputError
from searchkit.ingest import chunk_settings, to_passages
from searchkit.models.embedder import Embedder
from searchkit.records import Document

DOCUMENTS = 100
QUESTIONS = 50
SHORTEST = 32
"""Shortest default length in tokens, if the model's tokens for a passkey fit into it."""


@dataclass(frozen=True, slots=True)
class Person:
    """The person whose passkey a document holds.

    Args:
        name: Given and family name; both are unique.
        key: Five unique digits.
        position: Where in the filler the passkey belongs, from 0 for its start to 1 for its end; the same at every
            length.
    """

    name: str
    key: str
    position: float

    def sentence(self) -> str:
        """The sentence in the document."""
        return f"The passkey of {self.name} is {self.key}."

    def question(self) -> str:
        """The query."""
        return f"What is the passkey of {self.name}?"


@dataclass(frozen=True, slots=True)
class PasskeyResult:
    """Results for documents of one length.

    Args:
        length: Tokens of a document, with special tokens and document prefix.
        truncated: Documents longer than the model's input, which were cut as whole texts.
        passages: Passages of all documents in an index.
        whole: For each question, whether the right document came first by the vector of its whole text.
        indexed: The same by the best of its passages, as dense search in an index ranks documents.
    """

    length: int
    truncated: int
    passages: int
    whole: list[bool]
    indexed: list[bool]

    def summary(self) -> dict[str, float | int]:
        """Top-1 accuracies (0 to 1) and the sizes of the test."""
        return {
            "length": self.length,
            "whole_text": sum(self.whole) / len(self.whole),
            "as_indexed": sum(self.indexed) / len(self.indexed),
            "truncated": self.truncated,
            "documents": DOCUMENTS,
            "passages": self.passages,
            "questions": len(self.whole),
        }


def people(seed: int = 0) -> list[Person]:
    """The hundred people whose passkeys are hidden; queries ask for the first fifty."""
    pick = random.Random(f"people {seed}")
    given, family = pick.sample(_GIVEN.split(), DOCUMENTS), pick.sample(_FAMILY.split(), DOCUMENTS)
    keys = pick.sample(range(10_000, 100_000), DOCUMENTS)
    return [Person(f"{given[n]} {family[n]}", str(keys[n]), pick.random()) for n in range(DOCUMENTS)]


def passkey_documents(embedder: Embedder, length: int, *, seed: int = 0) -> list[Document]:
    """A document for each of `people(seed)`, in their order: filler with the passkey between two of its sentences.

    Longer documents continue the filler of shorter ones, so that results of two lengths differ by length alone.

    Args:
        embedder: The model whose tokens are counted.
        length: Tokens of a document, with special tokens and document prefix; it may have a few fewer.
        seed: Equal seeds give equal documents.

    Raises:
        InputError: A passkey does not fit into so few tokens.
    """
    _check_length(embedder, length, seed)
    room = length - embedder.special_tokens
    sizes = {sentence: max(1, _count(embedder, " " + sentence)) for sentence in _FILLER}
    documents = []
    for n, person in enumerate(people(seed)):
        filler, size = [], 0
        for sentence in _endless(random.Random(f"filler {seed} {n}")):
            if size > room:
                break
            filler.append(sentence)
            size += sizes[sentence]
        documents.append(Document(f"person-{n}", _fill(embedder, person, " ".join(filler), room)))
    return documents


def shortest_length(embedder: Embedder, *, seed: int = 0) -> int:
    """Fewest tokens, with special tokens and prefix, that hold any of the passkeys."""
    return embedder.special_tokens + max(_document_tokens(embedder, person.sentence()) for person in people(seed))


def default_lengths(embedder: Embedder, *, seed: int = 0) -> list[int]:
    """32, or the next power of two that holds a passkey, doubled up to the model's own length, which is the last.

    Raises:
        InputError: The model's input is shorter than a passkey.
    """
    longest, shortest = embedder.max_length, shortest_length(embedder, seed=seed)
    if longest < shortest:
        raise InputError(
            f"{embedder.name} takes {longest} tokens, but a passkey alone needs {shortest}; "
            "this model cannot be measured"
        )
    lengths = [SHORTEST << n for n in range(64) if shortest <= SHORTEST << n < longest]
    return [*lengths, longest]


def measure_passkeys(
    embedder: Embedder,
    lengths: Sequence[int] | None = None,
    *,
    instruction: str | None = None,
    chunk_tokens: int | None = None,
    overlap: int | None = None,
    seed: int = 0,
    on_length: Callable[[int], None] | None = None,
) -> list[PasskeyResult]:
    """Search for fifty people's passkeys among a hundred documents, at every length.

    Args:
        embedder: The model under test.
        lengths: Tokens of a document; None takes `default_lengths`. Texts longer than the model's input are cut, and
            counted in the result.
        instruction: Instruction of every query; None takes the model's default, "" none.
        chunk_tokens: Longest passage in tokens, for the indexed side; None takes an index's default, 0 whole
            documents.
        overlap: Tokens shared by neighbouring passages; None takes an index's default.
        seed: Decides people, keys, positions and filler.
        on_length: Called with each length before it is measured.

    Returns:
        A result for each length, shortest first. A right document that ties with a wrong one counts as wrong.

    Raises:
        InputError: A length or the passage settings do not fit the model, or the instruction leaves no room.
    """
    chunks = chunk_settings(embedder, chunk_tokens, overlap)
    wanted = sorted(set(default_lengths(embedder, seed=seed) if lengths is None else lengths))
    if not wanted:
        raise InputError("no length came; give at least one, in tokens")
    _check_length(embedder, wanted[0], seed)
    queries = _questions(embedder, instruction, seed)
    results = []
    for length in wanted:
        if on_length:
            on_length(length)
        results.append(_measure(embedder, passkey_documents(embedder, length, seed=seed), length, queries, chunks))
    return results


def report(embedder: Embedder, results: Sequence[PasskeyResult], *, seed: int = 0) -> dict[str, Any]:
    """Everything measured, ready for JSON: a row for each length, and the results of each person."""
    return {
        "model": embedder.identity(),
        "dtype": embedder.dtype,
        "seed": seed,
        "lengths": [item.summary() for item in results],
        "questions": [
            {
                "question": person.question(),
                "key": person.key,
                "place": round(person.position, 4),
                "whole_text": {str(item.length): item.whole[n] for item in results},
                "as_indexed": {str(item.length): item.indexed[n] for item in results},
            }
            for n, person in enumerate(people(seed)[:QUESTIONS])
        ],
    }


def _questions(embedder: Embedder, instruction: str | None, seed: int) -> np.ndarray:
    """(QUESTIONS, dim) float32 unit rows; row n is the question about person n."""
    before = embedder.stats.truncated
    rows = embedder.encode_queries([person.question() for person in people(seed)[:QUESTIONS]], instruction)
    if cut := embedder.stats.truncated - before:
        raise InputError(
            f"{cut} of {QUESTIONS} questions are longer than the {embedder.max_length} tokens that {embedder.name} "
            'takes; shorten the instruction where it stands in front of them, or measure without one (instruction "")'
        )
    return rows


def _measure(
    embedder: Embedder, documents: list[Document], length: int, queries: np.ndarray, chunks: dict[str, int]
) -> PasskeyResult:
    texts = [document.text for document in documents]
    before = embedder.stats.truncated
    rows = embedder.encode_passages(texts)
    truncated = embedder.stats.truncated - before
    cuts = [to_passages(document, "", embedder, chunks["chunk_tokens"], chunks["overlap"])[1] for document in documents]
    passages = [passage for passages in cuts for passage in passages]
    whole = queries @ rows.T  # (questions, documents)
    if passages == texts:
        indexed = whole
    else:
        starts = np.cumsum([0, *map(len, cuts[:-1])])
        indexed = np.maximum.reduceat(queries @ embedder.encode_passages(passages).T, starts, axis=1)
    return PasskeyResult(length, truncated, len(passages), _first(whole), _first(indexed))


def _first(scores: np.ndarray) -> list[bool]:
    """Whether document n scores above all others for question n; (questions, documents) -> questions."""
    own = scores.diagonal().copy()
    others = scores.copy()
    np.fill_diagonal(others, -np.inf)
    return [bool(right) for right in own > others.max(axis=1)]


def _check_length(embedder: Embedder, length: int, seed: int) -> None:
    shortest = shortest_length(embedder, seed=seed)
    if length < shortest:
        raise InputError(
            f"length is {length}, but a passkey alone takes {shortest} tokens of {embedder.name}; "
            f"choose {shortest} or more"
        )


def _endless(pick: random.Random) -> Iterator[str]:
    while True:
        yield from pick.sample(_FILLER, len(_FILLER))


def _fill(embedder: Embedder, person: Person, filler: str, room: int) -> str:
    """The passkey within as much of the filler as fits into `room` tokens."""
    offsets = embedder.offsets(filler)
    keep = room - _document_tokens(embedder, person.sentence())
    while keep > 0:
        text = _insert(person, _shortened(filler, offsets[min(keep, len(offsets)) - 1][1]))
        over = _document_tokens(embedder, text) - room
        if over <= 0:
            return text
        keep -= over  # tokens at the joints, rarely more than two
    return person.sentence()


def _shortened(filler: str, stop: int) -> str:
    """The filler up to a character, ending in a whole word and a full stop."""
    if stop < len(filler) and filler[stop].isalnum():
        stop = filler.rfind(" ", 0, stop)
    words = filler[: max(0, stop)].rstrip(" .,;:")
    return f"{words}." if words else ""


def _insert(person: Person, filler: str) -> str:
    """The passkey between two sentences of the filler, nearest to the person's position."""
    edges = [0, *(match.end() for match in re.finditer(r"\. ", filler)), len(filler)]
    edge = min(edges, key=lambda edge: abs(edge - person.position * len(filler)))
    return " ".join(part for part in (filler[:edge].strip(), person.sentence(), filler[edge:].strip()) if part)


def _document_tokens(embedder: Embedder, text: str) -> int:
    """Tokens of a document with its prefix, without special tokens."""
    return _count(embedder, embedder.conventions.document_prefix + text)


def _count(embedder: Embedder, text: str) -> int:
    return len(embedder.offsets(text))


_GIVEN = """
Ada Alasdair Amara Anselm Aoife Bartholomew Beatrix Benedikt Bronwen Caspian Cecily Chidi Clementine Conrad Cordelia
Dagmar Darius Delphine Dmitri Dorothea Edmund Eilidh Elodie Emeka Esme Farid Fenella Florian Freya Gareth Genevieve
Gideon Greta Guillermo Hamish Hana Harriet Hector Henrietta Hugo Idris Imogen Ingrid Isidore Ivo Jacinta Jasper Jolanta
Juniper Kasimir Keziah Kofi Lavinia Leopold Linnea Lorcan Ludmila Magnus Marcelline Matilda Mireille Mordecai Nadia
Nathaniel Niamh Octavia Olaf Ottoline Padraig Perpetua Petra Philippa Quentin Rafaela Reuben Rosalind Rufus Sabine
Saoirse Seraphina Sigrid Solomon Sunniva Tabitha Tarquin Thaddeus Theodora Tobias Ulrike Umberto Valentina Vikram
Wilhelmina Winifred Xanthe Yannick Yolanda Yusuf Zachary Zelda
"""

_FAMILY = """
Abernathy Adeyemi Albescu Ashdown Babcock Bancroft Bellweather Bergstrom Blackwood Boyle Calloway Carmichael
Castellano Chaudhry Colquhoun Cromwell Dalgaard Davenport Delacroix Drummond Eastwick Egerton Ekstrom Fairbanks
Farquhar Featherstone Fitzgerald Galbraith Garrick Gillespie Goldsmith Granger Haddad Halloran Hargreaves Hawthorne
Holloway Huxtable Ibarra Ingleby Iwu Jablonski Jankowski Jefferies Kaminski Kavanagh Kestrel Kowalczyk Lachlan
Langford Lindqvist Lockhart Macintyre Mahoney Marchetti McAllister Merriweather Montague Nakamura Nettleship
Nightingale Novak Oakenshaw Okonkwo Osterman Pemberton Petrov Pickering Quigley Quintero Radcliffe Ravenscroft
Rosenthal Rutherford Saltmarsh Sandoval Silverton Sinclair Stavros Sutcliffe Takahashi Tennant Thackeray Tremaine
Underhill Uzun Valdez Vandermeer Villanueva Wainwright Wetherby Whitlock Wolstenholme Xiang Yarrow Yeats Youngblood
Zamora Zeller Zimmerman
"""

_FILLER = """
The tide had gone out and left the boats leaning on the mud.
A kettle began to sing in the kitchen long before anyone was awake.
Rain ran down the slates and filled the barrel by the door.
The baker slid the last tray into the oven and wiped his hands.
Nobody had wound the clock on the landing since the spring.
Two crows argued over a crust at the far end of the field.
The ferry crosses the sound in the morning and comes back at dusk.
Under the bridge the water is slow, brown and full of leaves.
She planted beans along the fence because peas had failed there.
The train stood at the signal while the passengers read on.
A path of flat stones leads from the gate to the orchard.
The old map shows a mill where there is only grass today.
In the afternoon the wind turned and brought the smell of hay.
The library keeps its atlases on the lowest shelf.
They painted the shutters green, then changed their minds.
Snow stays longest on the north side of the barn.
The choir practises in the hall behind the market.
A lamp in the window was the only light along the road.
The carpenter saves every offcut for a smaller piece of work.
Clouds gathered over the hills and went away again.
The river takes a wide bend here, round a stand of poplars.
Soup was kept warm for whoever came in late.
The children built a dam of pebbles and watched it burst.
Moss covers the steps that nobody uses.
The orchestra tuned while the last of the audience sat down.
An apple left on the sill had begun to wrinkle.
The road over the pass is closed from the first frost.
He mended the net with a needle made of bone.
The cat slept on the ledger, and the accounts had to wait.
A market is held in the square when the weather allows.
The lighthouse was painted in broad bands of red and white.
Every spring the swallows return to the same beam.
The tram squeals where the rails turn into the high street.
Somebody had left a blue umbrella under the bench.
The gardener cut the hedge lower than it had ever been.
Wool is washed in the stream and dried on the wall.
The waiting room smelled of floor polish and oranges.
From the tower one can see the whole of the valley.
The kite rose, hung still for a moment and dipped.
A letter takes longer to reach the island in winter.
The potter turned a bowl and set it among the others.
Dust lay on the piano, but it was still in tune.
The bakery sells what is left at half price in the evening.
They walked round the lake and met no one at all.
The stove has to be lit an hour before supper.
Thistles grow along the ditch, and finches come for the seeds.
The museum lends its oldest loom to the weavers each autumn.
A dog barked twice on the other side of the valley.
The windows of the greenhouse were white with frost.
Fishermen mend their boats on the shingle in the cold months.
The schoolroom faces east, and mornings there are bright.
Honey from the heath is darker than honey from the clover.
The last bus leaves from the corner by the chemist.
Nettles are good for soup while they are young.
The quarry filled with water, and now people swim in it.
An owl calls from the chestnut as soon as it is dark.
The tailor chalked a line and cut along it without a pause.
Fog came up from the harbour and hid the far bank.
The shop on the quay sells rope, paint and barley sugar.
It was warm enough to leave the doors open all night.
""".strip().splitlines()
