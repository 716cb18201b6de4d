"""`farm report`: a batch told afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import click

from farm.cli.farm_context import Farm
from farm.errors import InputError


@click.command()
@click.argument("batch_id", metavar="BATCH", type=int)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the report goes; default: report-BATCH.html.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output, or in --output.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV with one line for each job, likewise.")
@click.pass_obj
def report(farm: Farm, batch_id: int, output: Path | None, as_json: bool, as_csv: bool) -> None:
    """Write a report of a batch, as one HTML page.  It has contact sheets, speed, cost and failures in words.

    \b
    Example:
        farm report 3 -o week-12.html
        farm report 3 --json | jq .device_seconds
    """
    from farm import report as reports  # draws with Pillow, which no other command needs

    if as_json and as_csv:
        raise click.UsageError("give --json or --csv, not both")
    found = reports.gather(farm.ledger, batch_id, farm.settings)
    if as_json:
        text = json.dumps(reports.as_json(found), ensure_ascii=False, indent=2) + "\n"
    elif as_csv:
        text = reports.as_csv(found)
    else:
        text = reports.as_html(found)
        output = output or Path(f"report-{batch_id}.html")
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"the report cannot be written to {output}: {error.strerror}") from None
    click.echo(str(output))
