"""The files of the lexical index in an index folder, which commits name with their checksums."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from searchkit.indexer.database import Database
from searchkit.indexer.errors import DamagedError
from searchkit.indexer.files import Stamp, stamp, verify
from searchkit.indexer.lexical import META

_MANAGED = ".managed.json"
"""Tantivy's list of the files that it removes when they are replaced."""

_COMMITTED = ".meta.json.named"


class LexicalFiles:
    """The folder of the lexical index that the last commit names.

    Args:
        database: Where commits name its files.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def folder(self) -> Path:
        """Where the lexical index of the last commit is."""
        return self._database.folder / "lexical" / str(self._database.setting("lexical"))

    def check(self) -> None:
        """Raise DamagedError unless the files are as a commit has named them."""
        folder = self.folder
        for name, value in self.named().items():
            verify(folder / name, value)

    def commit(self) -> None:
        """Name the files as they are now in a commit."""
        named = self.named()
        files = stamps(self.folder, named)
        if files != named:
            with self._database.transaction():
                self._database.put(lexical_files=files)

    def keep(self) -> None:
        """Keep a copy of tantivy's list of files as the last commit named it; call before passages are added."""
        if (file := self.folder / META).is_file():
            shutil.copyfile(file, file.with_name(_COMMITTED))

    def restore(self) -> None:
        """Undo what a killed writer added and did not commit; otherwise the whole index would have to be rebuilt."""
        file, named = self.folder / META, self.named().get(META)
        kept = file.with_name(_COMMITTED)
        if named is None or not kept.is_file():
            return
        try:
            verify(file, named)
        except DamagedError:
            with suppress(DamagedError):  # in which case it is rebuilt after all
                verify(kept, named)
                kept.replace(file)

    def share(self, folder: Path) -> None:
        """Give a new folder the files of the last commit, to be changed there: tantivy writes no file a second time."""
        folder.mkdir()
        for name in self.named():
            if name != META:
                _link(self.folder / name, folder / name)
        for name in (_MANAGED, META):  # which it replaces
            shutil.copyfile(self.folder / name, folder / name)

    def named(self) -> dict[str, Stamp]:
        """The files that the last commit names."""
        return {name: Stamp(*value) for name, value in self._database.setting("lexical_files").items()}


def _link(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        stamp(target)  # to have it on the disk


def stamps(folder: Path, known: dict[str, Stamp] | None = None) -> dict[str, Stamp]:
    """Size and checksum of the lexical index's files; known ones, which never change, are not read again."""
    files = sorted(file for file in folder.glob("[!.]*") if file.suffix != ".lock")
    known = {name: value for name, value in (known or {}).items() if name != META}
    return {file.name: known.get(file.name) or stamp(file) for file in files}
