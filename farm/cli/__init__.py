"""`farm`: the command line.  One module for each noun; this one joins them and turns errors into exit codes."""

from __future__ import annotations

import sys

import click

from farm import __version__
from farm.cli.completion import completion
from farm.cli.db import db
from farm.cli.doctor import doctor
from farm.cli.farm_context import Farm
from farm.cli.gc import gc
from farm.cli.jobs import batches, jobs
from farm.cli.lifecycle import down, flower, up, worker
from farm.cli.logs import logs
from farm.cli.models import models
from farm.cli.nightly import nightly
from farm.cli.owners import owners
from farm.cli.render import render
from farm.cli.report import report
from farm.cli.serve import keys, serve
from farm.cli.status import status
from farm.cli.submit import submit
from farm.cli.watch import watch
from farm.cli.workers import workers
from farm.errors import FarmError, IllegalMove


class FarmGroup(click.Group):
    """Turns the farm's own errors into one line on stderr and their exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except IllegalMove:
            raise  # our bug: the traceback is wanted
        except FarmError as error:
            click.echo(f"farm: {error}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            sys.stderr.close()  # `farm jobs list | head`
            ctx.exit(0)
        except KeyboardInterrupt:
            click.echo("", err=True)
            ctx.exit(130)


@click.group(cls=FarmGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="farm")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Batch rendering of talking-head video.

    \b
    Example:
        farm up
        farm submit lectures.csv --wait
    """
    ctx.obj = Farm()


for command in (
    submit,
    render,
    up,
    down,
    watch,
    status,
    jobs,
    batches,
    owners,
    workers,
    worker,
    flower,
    logs,
    doctor,
    models,
    gc,
    nightly,
    serve,
    report,
    keys,
    db,
    completion,
):
    cli.add_command(command)


def main() -> None:
    cli.main(prog_name="farm")


if __name__ == "__main__":
    main()
