"""`farm`: the command line.  One module for each noun; this one joins them and turns errors into exit codes."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

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
from farm.config import home_from_environment
from farm.errors import ConfigError, FarmError, IllegalMove, InputError, NotEnoughRoom

# What the machine refuses is no bug of the farm, wherever it is met.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class FarmGroup(click.Group):
    """Turns the farm's own errors, and what the machine refuses, into one line on stderr and an exit code."""

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
        except OSError as error:
            told = _translate(error)
            if told is None:
                raise
            click.echo(f"farm: {told}", err=True)
            ctx.exit(told.exit_code)
        except KeyboardInterrupt:
            click.echo("", err=True)
            ctx.exit(130)


def _translate(error: OSError) -> FarmError | None:
    """What a person is told of a file that cannot be written or read; None for what only a traceback explains."""
    said = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    if error.errno in _FULL:
        return NotEnoughRoom(f"{said}; free some space, or run `farm gc`")
    if error.errno not in _REFUSED:
        return None
    if error.filename and Path(str(error.filename)).is_relative_to(home_from_environment()):
        return ConfigError(f"{said}; FARM_HOME must be a folder that you may write to")
    return InputError(said)


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
