"""`farm doctor`."""

from __future__ import annotations

import click

from farm.cli.farm_context import Farm
from farm.cli.show import echo_rows, json_option
from farm.doctor import Finding, examine
from farm.roster import load_roster


@click.command()
@click.option("--deep", is_flag=True, help="Also render a tiny film through every worker of this machine.")
@click.option("--patience", default=300.0, show_default=True, help="Seconds that the tiny films may take together.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, deep: bool, patience: float, as_json: bool) -> None:
    """Examine this machine's part of the farm and say what to do.  Exits with 1 if something is wrong.

    \b
    Example:
        farm doctor
        farm doctor --deep
    """
    farm: Farm = ctx.obj
    findings: list[Finding] = examine(farm.settings)
    if deep:
        from farm.trial import render_everywhere

        findings += render_everywhere(farm.ledger, farm.settings, load_roster(), patience_seconds=patience)
    rows = [{"what": f.what, "is": f.verdict, "found": f.found, "do": f.advice} for f in findings]
    echo_rows(rows, as_json=as_json, columns=("what", "is", "found", "do"), empty="nothing examined")
    if any(f.verdict == "wrong" for f in findings):
        ctx.exit(1)
