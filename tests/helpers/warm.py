"""A `python` that has loaded torch and what goes with it: a program costs a fork, and not five seconds of imports.

A process imports the libraries and waits at a socket. The command that `warm_python` gives takes FILE or -m MODULE with
arguments, as python does, hands them over with its streams, and ends with the exit code of the fork that ran them.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

LIBRARIES = (
    "sentence_transformers", "datasets", "peft", "accelerate", "transformers.models.mistral", "matplotlib.figure",
    "onnxruntime", "faiss", "tantivy", "searchkit.training.train", "searchkit.training.paper.command",
)  # fmt: skip
CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    asked = {"arguments": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps(asked).encode() + b"\\n")
    sys.exit(int(server.recv(16) or b"255"))
"""


@contextmanager
def warm_python() -> Iterator[Path]:
    """The command, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:  # short: a socket's path has 107 bytes at most
        client, command, address = (Path(folder) / name for name in ("client.py", "python", "socket"))
        client.write_text(CLIENT)
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -ISs "{client}" "{address}" "$@"\n')
        command.chmod(0o755)
        server = subprocess.Popen(
            [sys.executable, __file__, address, command], stdout=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield command
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.communicate()


def serve(address: str, command: str) -> None:
    """Import the libraries, and then fork for every program."""
    for library in LIBRARIES:
        import_module(library)
    sys.executable = command  # of programs that start python themselves
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                answer(connection)
                os._exit(0)
            connection.close()
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that have answered
                pass


def answer(connection: socket.socket) -> None:
    """Fork a program that was asked for, and send its exit code."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    asked = json.loads(connection.makefile().readline())
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os._exit(run(**asked))
    _, status = os.waitpid(child, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def run(arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    """Run FILE or -m MODULE as the main program; its exit code."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code: Any = 0
    try:
        if arguments[0] == "-m":
            sys.path[0], sys.argv = "", arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0], sys.argv = str(Path(arguments[0]).parent), arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    serve(*sys.argv[1:])
