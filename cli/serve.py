"""`searchkit serve`: answer over HTTP for one or more indexes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.options import require
from searchkit.cli.output import note
from searchkit.cli.types import NON_EMPTY, PLACE

if TYPE_CHECKING:
    from searchkit.remote.address import MilvusAddress


@click.command()
@click.argument("indexes", type=PLACE, nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a key.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option(
    "--keys-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Lines such as "read KEY" or "write KEY". Keys also come from SEARCHKIT_READ_KEYS and SEARCHKIT_WRITE_KEYS.',
)
@click.option("--no-auth", is_flag=True, help="Everybody who reaches the address may read. Writing needs a write key.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Origin whose pages may call the service. Repeatable.")
@click.option("--allowed-host", multiple=True, metavar="NAME", help="Name that the Host header may have. Repeatable.")
@click.option("--rerank", type=NON_EMPTY, help="Reranker for /v1/rerank and searches: folder or hub id.")
@click.option("--device", help="Where models run and vectors are searched. [default: the best for models]")
@click.option("--threads", type=click.IntRange(1), help="Forward passes at the same time. [default: all CPUs]")
@click.option("--max-body", default=8 << 20, show_default=True, type=click.IntRange(1), help="Bytes of a request.")
@click.option("--deadline", default=30.0, show_default=True, type=click.FloatRange(0.1), help="Seconds for a request.")
@click.option(
    "--queue-tokens",
    default=100_000,
    show_default=True,
    type=click.IntRange(1),
    help="Tokens that may wait before requests get 429.",
)
@click.option("--log-texts", is_flag=True, help="Write queries to the log.")
def serve(
    indexes: tuple[Path | MilvusAddress, ...],
    host: str,
    port: int,
    keys_file: Path | None,
    no_auth: bool,
    cors: tuple[str, ...],
    allowed_host: tuple[str, ...],
    rerank: str | None,
    device: str | None,
    threads: int | None,
    max_body: int,
    deadline: float,
    queue_tokens: int,
    log_texts: bool,
) -> None:
    """Serve INDEXES over HTTP: search, OpenAI's embeddings, Cohere's rerank.

    An index goes by its folder's name without ".index", a collection in Milvus by its own.

    \b
        searchkit serve papers.index notes.index --port 8080
        curl 'http://127.0.0.1:8080/indexes/papers/search?query=vitamin+D'
    """
    require("the service", "serve", "fastapi", "uvicorn", "prometheus_client")
    from searchkit.server.app import create_app
    from searchkit.server.logs import log_as_json
    from searchkit.server.process import Server, check_address
    from searchkit.server.settings import Settings, read_keys

    settings = Settings(
        indexes=indexes,
        host=host,
        port=port,
        keys=read_keys(keys_file),
        no_auth=no_auth,
        cors=cors,
        allowed_hosts=allowed_host,
        rerank=rerank,
        device=device,
        threads=threads,
        max_body=max_body,
        deadline=deadline,
        queue_tokens=queue_tokens,
        log_texts=log_texts,
    )
    check_address(settings)
    app = create_app(settings)
    if no_auth and not settings.loopback:
        note(f"warning: anyone who can reach {host} may read these indexes (--no-auth)")
    log_as_json()
    Server(app, settings).run()
