"""`farm serve` and `farm keys`: the HTTP API, the farm's page, and who may use them."""

from __future__ import annotations

import sys
from typing import Any

import click

from farm.cli.farm_context import Farm
from farm.cli.show import echo_json, echo_rows, json_option, moment
from farm.ledger.keys import Scope, add_key, list_keys, revoke_key
from farm.logs import log_to_stderr
from farm.roster import user_name


@click.command()
@click.option("--host", help="Address to listen on; default: server.host of farm.toml.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one; default: server.port of farm.toml."
)
@click.option("--open", "is_open", is_flag=True, help="Ask nobody for a key; only on this machine's loopback.")
@click.pass_obj
def serve(farm: Farm, host: str | None, port: int | None, is_open: bool) -> None:
    """Serve the HTTP API and the farm's page.

    \b
    Example:
        farm keys add "my laptop"
        farm serve --port 8000
    """
    try:
        from farm.server import run
    except ImportError as error:
        raise click.ClickException(f"{error.name} is missing; pip install 'talking-head-farm[server]'") from None
    log_to_stderr(farm.settings.log_format)
    changes: dict[str, Any] = {"host": host, "port": port, "open": is_open or None}
    given = {name: value for name, value in changes.items() if value is not None}
    settings = farm.settings.model_copy(update={"server": farm.settings.server.model_copy(update=given)})
    taken = run.bind(settings)
    address = run.address_of(taken)
    click.echo(f"The farm's page is at {_with_first_key(farm, settings.server.open, address)}", err=True)
    run.serve(farm.ledger, settings, taken)


def _with_first_key(farm: Farm, is_open: bool, address: str) -> str:
    """The page's address; on a terminal, where no key was ever made, with a first one in it."""
    if is_open or list_keys(farm.ledger):
        return address
    if not sys.stderr.isatty():
        return f"{address}; make a key for it with `farm keys add NAME`"
    secret, _ = add_key(farm.ledger, name="first", owner=user_name(), scope=Scope.ADMIN)
    return f"{address}/#key={secret}"


@click.group()
def keys() -> None:
    """Make, list and revoke the keys of the HTTP API.

    \b
    Example:
        farm keys add "my laptop"
    """


@keys.command("add")
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice([scope.value for scope in Scope]),
    default=Scope.SUBMIT.value,
    show_default=True,
    help="read: see its owner's films; submit: also send work; admin: everything, for every owner.",
)
@click.option("--owner", help="Whose jobs it sees and makes; default: your user name.")
@json_option
@click.pass_obj
def add(farm: Farm, name: str, scope: str, owner: str | None, as_json: bool) -> None:
    """Make a key and print it; it cannot be shown again.

    \b
    Example:
        farm keys add "lecture portal" --owner physics --scope submit
    """
    secret, key = add_key(farm.ledger, name=name, owner=owner or user_name(), scope=Scope(scope))
    if as_json:
        echo_json({"key": secret, "id": key.id, "name": key.name, "owner": key.owner, "scope": key.scope.value})
        return
    click.echo(secret)
    click.echo("Keep it well: the farm holds only its hash and cannot show it again.", err=True)


@keys.command("list")
@json_option
@click.pass_obj
def show(farm: Farm, as_json: bool) -> None:
    """List the keys by name, owner and scope; the secrets are not shown.

    \b
    Example:
        farm keys list
    """
    rows = [
        {
            "id": key.id,
            "name": key.name,
            "owner": key.owner,
            "scope": key.scope.value,
            "created": moment(key.created_at),
            "revoked": moment(key.revoked_at),
        }
        for key in list_keys(farm.ledger)
    ]
    columns = ("id", "name", "owner", "scope", "created", "revoked")
    echo_rows(rows, as_json=as_json, columns=columns, empty="There is no key; `farm keys add NAME` makes one.")


@keys.command("revoke")
@click.argument("key_id")
@click.pass_obj
def revoke(farm: Farm, key_id: str) -> None:
    """Revoke a key.  Within five seconds it opens nothing any more.

    \b
    Example:
        farm keys revoke 3f2a9c71d0be
    """
    revoke_key(farm.ledger, key_id)
    click.echo(f"Key {key_id} is revoked.")
