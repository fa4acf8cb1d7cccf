"""The files of the lexical index in an index folder, which commits name with their checksums."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from xxhash import xxh3_128

from searchkit.indexer.database import Database
from searchkit.indexer.errors import DamagedError
from searchkit.indexer.files import Stamp, next_number, stamp, sync_folder, verify
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
        named = self.named()
        for name in named:
            if name != META:
                _link(self.folder / name, folder / name)
        # Tantivy replaces these two. No commit names its list of files, which a copy of the index may lack.
        (folder / _MANAGED).write_text(json.dumps(sorted(named)), "utf-8")
        shutil.copyfile(self.folder / META, folder / META)

    def name_by_content(self) -> None:
        """Call tantivy's files, which have random names, by what they hold: equal indexes have equal files.

        The old folder stays for those who read it, until the next sweep.
        """
        named, listed = self.named(), json.loads((self.folder / META).read_text("utf-8"))
        names: dict[str, str] = {}
        for segment in listed["segments"]:
            old = UUID(segment["segment_id"]).hex
            files = {file: file.removeprefix(old) for file in sorted(named) if file.startswith(old)}
            name = UUID(xxh3_128(json.dumps([[files[file], *named[file]] for file in files]).encode()).hexdigest())
            segment["segment_id"] = str(name)
            names |= {file: name.hex + rest for file, rest in files.items()}
        if all(old == new for old, new in names.items()):
            return
        listed["segments"].sort(key=lambda segment: segment["segment_id"])
        number = next_number(self.folder.parent, self.folder.name)
        folder = self.folder.with_name(number)
        folder.mkdir()
        for old, new in names.items():
            _link(self.folder / old, folder / new)
        (folder / _MANAGED).write_text(json.dumps(sorted([*names.values(), META])), "utf-8")
        (folder / META).write_text(json.dumps(listed, indent=2), "utf-8")
        stamped = stamps(folder, {new: named[old] for old, new in names.items()})
        sync_folder(folder)
        with self._database.transaction():
            self._database.put(lexical=number, lexical_files=stamped)

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
