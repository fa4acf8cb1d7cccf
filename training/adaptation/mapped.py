"""A linear map behind a model, and the index of that model: nothing is trained or embedded again."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.ingest import COMMIT_EVERY, AddReport, Commits
from searchkit.lexical_sync import LexicalSync
from searchkit.models.batches import unit_rows
from searchkit.models.conventions import dense_folders
from searchkit.models.embedder import Embedder
from searchkit.new_folder import new_folder
from searchkit.training.files import link
from searchkit.training.layout import write_layout

_BATCH = 256


def write_model(base: Embedder, linear: Path, out: Path) -> None:
    """Write a model folder: the base's, with a Dense module more at its end.

    Args:
        base: A model in a local folder; its files are linked where the file system allows, else copied.
        linear: Folder of the module.
        out: A new folder.
    """
    dense = [*dense_folders(base.settings_folder), linear]
    with new_folder(out) as new:
        write_layout(base, new, default_instruction=base.conventions.default_instruction, dense=dense)
        for file in base.folder.iterdir():
            if file.is_file() and not (new / file.name).exists():
                link(file, new / file.name)


def add_mapped(old: SearchEngine, new: SearchEngine, matrix: np.ndarray) -> None:
    """Add the documents of an index to another, with their vectors times a map; what the other has already stays.

    Args:
        old: The index, at the commit where it was opened.
        new: An index of the model with the map, open for writing.
        matrix: (dim, dim) float32.
    """
    lexical = LexicalSync(new.store, new.settings["language"])
    commits = Commits(new.store, lexical, new.store.snapshot(), AddReport(), COMMIT_EVERY, None)
    living = old.store.documents.living_since(0, old.snapshot.next_doc)
    while batch := list(islice(living, _BATCH)):
        stored = [old.store.documents.document(doc) for doc, *_ in batch]
        known = new.known_ids([document.id for _, document in stored])
        missing = [(first, document) for first, document in stored if document.id not in known]
        if missing:
            rows = np.concatenate([first + np.arange(len(document.spans)) for first, document in missing])
            commits.add([document for _, document in missing], unit_rows(old.vectors_of(rows) @ matrix))
    commits.commit()
    lexical.close()
    new.reload()
