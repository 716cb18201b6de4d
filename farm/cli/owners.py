"""`farm owners`."""

from __future__ import annotations

import click

from farm.cli.farm_context import Farm
from farm.cli.show import echo_rows, json_option, plain
from farm.errors import InputError
from farm.ledger import owners as of


@click.group()
def owners() -> None:
    """List owners; set their shares and quotas.  An owner is for whom a job is rendered.

    \b
    Example:
        farm owners list
    """


@owners.command("list")
@json_option
@click.pass_obj
def list_owners(farm: Farm, as_json: bool) -> None:
    """List every owner: its share, quota, running and waiting segments.

    \b
    Example:
        farm owners list --json | jq .running
    """
    rows = [{**plain(o), "quota": o.quota if as_json else o.quota or "none"} for o in of.owners(farm.ledger)]
    columns = ("name", "share", "quota", "running", "waiting")
    echo_rows(rows, as_json=as_json, columns=columns, empty="no owners yet; the first submit brings one")


@owners.command("share")
@click.argument("owner")
@click.argument("share", type=float)
@click.pass_obj
def set_share(farm: Farm, owner: str, share: float) -> None:
    """Set how large a share of the workers' time an owner gets.  2 is twice as much as 1, from its next submit on.

    \b
    Example:
        farm owners share physics 2
    """
    of.set_share(farm.ledger, owner, share)


@owners.command("quota")
@click.argument("owner")
@click.argument("segments", metavar="SEGMENTS|none")
@click.pass_obj
def set_quota(farm: Farm, owner: str, segments: str) -> None:
    """Limit how many segments of an owner render at once.  `none` lifts the limit.  What runs is not taken back.

    \b
    Example:
        farm owners quota physics 4
    """
    try:
        quota = None if segments == "none" else int(segments)
    except ValueError:
        raise InputError(f"{segments!r} is no number of segments; give one such as 4, or none") from None
    of.set_quota(farm.ledger, owner, quota)
