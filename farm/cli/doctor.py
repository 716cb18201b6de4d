"""`farm doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from farm.checkup import Finding, examine_material
from farm.cli.farm_context import Farm
from farm.cli.show import echo_rows, json_option
from farm.doctor import examine
from farm.models import load_model
from farm.roster import load_roster


@click.command()
@click.option("--deep", is_flag=True, help="Also render a tiny film through every worker of this machine.")
@click.option("--patience", default=300.0, show_default=True, help="Seconds that the tiny films may take together.")
@click.option(
    "--look-at",
    "material",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Also say whether this photo or recording suits; may be given again.",
)
@click.option("--model", "model_id", default="preview", show_default=True, help="The model that --look-at is for.")
@json_option
@click.pass_context
def doctor(
    ctx: click.Context, deep: bool, patience: float, material: tuple[Path, ...], model_id: str, as_json: bool
) -> None:
    """Examine this machine's part of the farm and say what to do.  Exits with 1 if something is wrong.

    \b
    Example:
        farm doctor
        farm doctor --deep
        farm doctor --look-at portrait.jpg --look-at speech.mp3 --model soulx-flashhead-1.3b
    """
    farm: Farm = ctx.obj
    findings: list[Finding] = examine(farm.settings)
    for path in material:
        findings += examine_material(path, load_model(model_id))
    if deep:
        from farm.trial import render_everywhere

        findings += render_everywhere(farm.ledger, farm.settings, load_roster(), patience_seconds=patience)
    rows = [{"what": f.what, "is": f.verdict, "found": f.found, "do": f.advice} for f in findings]
    echo_rows(rows, as_json=as_json, columns=("what", "is", "found", "do"), empty="nothing examined")
    if any(f.verdict == "wrong" for f in findings):
        ctx.exit(1)
