"""`searchkit completion`: commands and options completed by the shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that makes SHELL complete searchkit's commands and options.

    \b
        searchkit completion bash > ~/.local/share/bash-completion/completions/searchkit
        searchkit completion zsh > ~/.searchkit-completion.zsh     # then, in ~/.zshrc: source that file
        searchkit completion fish > ~/.config/fish/completions/searchkit.fish
    """
    from searchkit.cli.main import main

    complete = get_completion_class(shell)
    assert complete is not None  # click brings all of _SHELLS
    click.echo(complete(main, {}, "searchkit", "_SEARCHKIT_COMPLETE").source())
