"""`farm logs`."""

from __future__ import annotations

import re
import time
from pathlib import Path

import click

from farm.cli.farm_context import Farm
from farm.cli.show import echo_json, json_option, moment
from farm.ledger import read
from farm.ledger.values import LedgerEvent, Segment
from farm.logs import redact
from farm.states import FINISHED, SegmentKind

LOOK_SECONDS = 0.5


@click.command()
@click.argument("job_id", metavar="JOB", type=int)
@click.option("-f", "--follow", is_flag=True, help="Stay until the job has ended.")
@click.option(
    "--raw", is_flag=True, help="Also the lines of this machine's logs of workers and server that name the job."
)
@json_option
@click.pass_obj
def logs(farm: Farm, job_id: int, follow: bool, raw: bool, as_json: bool) -> None:
    """Print what happened to a job, from the ledger's history.

    \b
    Example:
        farm logs 7 --follow
    """
    read.job(farm.ledger, job_id)
    last = 0
    while True:
        ended = read.job(farm.ledger, job_id).state in FINISHED
        events = read.events(farm.ledger, job_id=job_id, after_id=last)
        segments = {s.id: s for s in read.segments(farm.ledger, job_id)}
        for event in events:
            last = event.id
            if as_json:
                echo_json(event)
            else:
                click.echo(_line(event, segments))
        if not events and (ended or not follow):
            break
        if not events:
            time.sleep(LOOK_SECONDS)
    if raw and not as_json:
        for line in _raw_lines(farm.settings.logs_dir, job_id):
            click.echo(line)


def _line(event: LedgerEvent, segments: dict[int, Segment]) -> str:
    what = event.event
    segment = segments.get(event.segment_id) if event.segment_id is not None else None
    if segment is not None:
        name = f"segment {segment.number + 1}" if segment.kind is SegmentKind.RENDER else segment.kind.value
        what = f"{name}: {what}"
    where = f" [{event.worker}]" if event.worker else ""
    attempt = f" (attempt {event.attempt})" if event.attempt else ""
    detail = f": {redact(event.detail)}" if event.detail else ""
    return f"{moment(event.at)}  {what}{attempt}{where}{detail}"


def _raw_lines(logs_dir: Path, job_id: int) -> list[str]:
    named = re.compile(rf'\bjob[ =]{job_id}\b|"job": {job_id}\b')  # in a sentence, among a line's ids, in JSON
    found: list[str] = []
    for path in sorted([*logs_dir.glob("worker-*.log*"), *logs_dir.glob("serve.log*")]):
        with path.open(errors="replace") as file:
            found += [f"{path.stem}: {line.rstrip()}" for line in file if named.search(line)]
    return found
