"""`farm completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes a shell complete farm's commands.

    \b
    Example:
        farm completion bash > ~/.local/share/bash-completion/completions/farm
        farm completion zsh > ~/.zfunc/_farm
        farm completion fish > ~/.config/fish/completions/farm.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # click knows each of the three
    root = ctx.find_root().command
    click.echo(found(root, {}, "farm", "_FARM_COMPLETE").source())
