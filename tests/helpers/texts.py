"""Thirty short passages."""

from __future__ import annotations

SENTENCES = [
    "The bridge over the river was closed for repairs.",
    "Bread rises because yeast makes gas.",
    "A comet's tail always points away from the sun.",
    "Interest on the loan is paid every month.",
    "The orchestra tunes to the oboe.",
    "Bees tell each other where flowers are by dancing.",
    "A vaccine trains the immune system without the illness.",
    "The library lends tools as well as books.",
    "Salt lowers the freezing point of water.",
    "Sailors found their latitude from the height of the sun.",
]


TEXTS = [f"{sentence} {note}" for note in ("", "It is so.", "Nobody knew why.") for sentence in SENTENCES]
