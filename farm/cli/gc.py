"""`farm gc`."""

from __future__ import annotations

import click

from farm.cli.farm_context import Farm
from farm.cli.show import echo_json, json_option
from farm.retention import Garbage, find_garbage, remove


@click.command()
@click.option("--older-than", "days", type=float, default=14.0, show_default=True, help="Days since the job ended.")
@click.option(
    "--keep-gb",
    type=float,
    help="Delete the oldest working files, whatever their age, until this many GB are left.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be deleted.")
@json_option
@click.pass_obj
def gc(farm: Farm, days: float, keep_gb: float | None, dry_run: bool, as_json: bool) -> None:
    """Delete working files of jobs that ended, and old uploads.  Working files are segments, decoded audio and
    forgotten staging files.

    Segments are what new films of an edited recording use again, so the setting segments.keep_gb says how much of them
    may stay; beyond it the oldest are deleted, whatever their age.  Films, posters, contact sheets and reports are
    never deleted, nor anything that a job still needs.  An upload goes when no open job names it, and it was sent, and
    its last job ended, longer ago than --older-than; so does an input that a submit put into an object store.

    \b
    Example:
        farm gc --dry-run
        farm gc --older-than 3
        farm gc --keep-gb 200
    """
    garbage: list[Garbage] = find_garbage(farm.ledger, farm.settings, older_than_days=days, keep_gb=keep_gb)
    if not dry_run:
        garbage = remove(farm.ledger, farm.settings, garbage)
    total = sum(item.size_bytes for item in garbage)
    if as_json:
        for item in garbage:
            echo_json({"path": item.path, "size_bytes": item.size_bytes, "why": item.why})
        return
    verb = "would delete" if dry_run else "deleted"
    click.echo(f"{verb} {len(garbage)} files, {total / 1e6:.1f} MB")
    if dry_run:
        for item in garbage[:50]:
            click.echo(f"  {item.path}  ({item.why})")
