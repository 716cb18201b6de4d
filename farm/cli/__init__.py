"""`farm`: the command line.  One module for each noun; this one joins them and turns errors into exit codes."""

from __future__ import annotations

import errno
import importlib
import sys
from pathlib import Path

import click

from farm import __version__
from farm.errors import ConfigError, FarmError, IllegalMove, InputError, NotEnoughRoom
from farm.logs import warn_on_stderr

# What the machine refuses is no bug of the farm, wherever it is met.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
_FULL = (errno.ENOSPC, errno.EDQUOT)


# By command, the module of this package that has it.  It is imported when the command is asked for: together they
# import all that the farm is made of, which takes a second.
_MODULES = {
    **{name: name for name in ("batches", "completion", "db", "doctor", "gc", "jobs", "logs", "models", "nightly")},
    **{name: name for name in ("owners", "render", "report", "serve", "status", "submit", "watch", "workers")},
    **dict.fromkeys(("up", "down", "worker", "flower"), "lifecycle"),
    "keys": "serve",
}


class FarmGroup(click.Group):
    """Turns the farm's own errors, and what the machine refuses, into one line on stderr and an exit code."""

    def list_commands(self, ctx: click.Context | None) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context | None, cmd_name: str) -> click.Command | None:
        if cmd_name in _MODULES and cmd_name not in self.commands:
            module = importlib.import_module(f"farm.cli.{_MODULES[cmd_name]}")
            self.add_command(getattr(module, cmd_name))
        return self.commands.get(cmd_name)

    def load_all(self) -> None:
        """Let `commands` hold all of them."""
        for name in _MODULES:
            self.get_command(None, name)

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
    from farm.config import home_from_environment

    if error.filename and Path(str(error.filename)).is_relative_to(home_from_environment()):
        return ConfigError(f"{said}; FARM_HOME must be a folder that you may write to")
    return InputError(said)


@click.group(cls=FarmGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="farm")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Batch rendering of talking-head video: portraits and sound in, films out.

    \b
    Example:
        farm up
        farm submit lectures.csv --wait
    """
    from farm.cli.farm_context import Farm

    ctx.obj = Farm()


def main() -> None:
    warn_on_stderr()
    cli.main(prog_name="farm")


if __name__ == "__main__":
    main()
