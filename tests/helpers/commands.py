"""Run the command line in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from searchkit.cli.main import main


def call(
    *arguments: object, code: int = 0, stdin: str | bytes | None = None, env: dict[str, str] | None = None
) -> Result:
    """Run the command here; the exit code is as expected, and no error comes as a traceback."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin, env=env)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result


def printed(*arguments: object, code: int = 0) -> str:
    """All that a command prints."""
    return call(*arguments, code=code).output


def write_lines(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
