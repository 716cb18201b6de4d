"""`farm db`."""

from __future__ import annotations

from pathlib import Path

import click

from farm.cli.farm_context import Farm
from farm.config import load_settings
from farm.errors import InputError, LedgerError
from farm.ledger import copying, migrate, open_ledger, repair
from farm.ledger.audit import audit
from farm.store import open_store


@click.group()
def db() -> None:
    """Upgrade, check and back up the ledger, the farm's database.

    \b
    Example:
        farm db check
    """


@db.command()
@click.option("--revision", default="head", show_default=True, help="The revision that it shall have.")
@click.pass_obj
def upgrade(farm: Farm, revision: str) -> None:
    """Bring the ledger to the newest shape.  Drain the workers first; make a backup of PostgreSQL.

    \b
    Example:
        farm db upgrade
    """
    ledger = open_ledger(farm.settings.ledger)
    before = migrate.current_revision(ledger)
    migrate.upgrade(ledger, revision)
    click.echo(f"{before or 'empty'} -> {migrate.current_revision(ledger)}")


@db.command()
@click.argument("revision")
@click.confirmation_option(prompt="This may drop columns and what is in them. Go on?")
@click.pass_obj
def downgrade(farm: Farm, revision: str) -> None:
    """Bring the ledger back to an earlier shape; `base` empties it.

    \b
    Example:
        farm db downgrade 0001 --yes
    """
    ledger = open_ledger(farm.settings.ledger)
    migrate.downgrade(ledger, revision)
    click.echo(f"now at {migrate.current_revision(ledger) or 'empty'}")


@db.command()
@click.pass_obj
def current(farm: Farm) -> None:
    """Print the ledger's revision and the newest one.

    \b
    Example:
        farm db current
    """
    ledger = open_ledger(farm.settings.ledger)
    click.echo(f"{migrate.current_revision(ledger) or 'empty'} (newest: {migrate.newest_revision()})")


@db.command()
@click.option("--promises", is_flag=True, help="Also ask whether every promise of docs/reliability.md is kept.")
@click.option("--files", is_flag=True, help="The same, and hash every artifact, which reads them all.")
@click.pass_obj
def check(farm: Farm, promises: bool, files: bool) -> None:
    """Check that the ledger has the shape that this farm expects.  Exits with 1 if not.

    \b
    Example:
        farm db check
        farm db check --files
    """
    ledger = open_ledger(farm.settings.ledger)
    have, want = migrate.current_revision(ledger), migrate.newest_revision()
    migrate.refuse_newer(have)
    if have != want:
        raise LedgerError(f"the ledger is at revision {have or 'empty'}, this farm needs {want}; run `farm db upgrade`")
    different = migrate.differences(ledger)
    if different:
        raise LedgerError("the ledger differs from what this farm expects: " + "; ".join(different[:5]))
    if promises or files:
        broken = audit(ledger, farm.settings, check_files=files)
        for violation in broken:
            click.echo(str(violation))
        if broken:
            raise LedgerError(f"{len(broken)} promises are broken; docs/reliability.md says what each means")
        click.echo("every promise is kept" + (", and every file is as it was published" if files else ""))
    click.echo(f"the ledger is right, at revision {have}")


@db.command()
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def backup(farm: Farm, target: Path) -> None:
    """Copy an SQLite ledger to TARGET, while the farm works.  Copy the artifacts after it.

    \b
    Example:
        farm db backup /backup/ledger.db
    """
    repair.back_up(farm.ledger, target)
    click.echo(f"{target}, {target.stat().st_size / 1e6:.1f} MB; now copy {open_store(farm.settings).where}")


@db.command(name="copy")
@click.argument("url")
@click.pass_obj
def copy_ledger(farm: Farm, url: str) -> None:
    """Copy the ledger into the empty database at URL.  No worker may run.

    Made for a farm that goes from SQLite to PostgreSQL.

    Jobs, films and keys keep their numbers, and open jobs go on there.  Artifacts stay where they are.

    \b
    Example:
        farm db copy postgresql://farm:PASSWORD@db.example.org/farm
    """
    if "://" not in url:
        raise InputError(f"{url} is no database URL such as postgresql://user:password@host/farm")
    target = open_ledger(load_settings(ledger_url=url).ledger)
    migrate.ensure_current(target)
    count = copying.copy_into(farm.ledger, target)
    click.echo(f"{count} jobs copied; now set ledger_url (or FARM_LEDGER_URL) to the new one on every machine")


@db.command()
@click.argument("old")
@click.argument("new")
@click.pass_obj
def relocate(farm: Farm, old: str, new: str) -> None:
    """Tell the ledger that the artifacts were moved from OLD to NEW.  Stop all workers first.

    The files themselves are not touched.  Each place is a folder, or a place in an object store.

    \b
    Example:
        farm db relocate /old/home/artifacts /new/home/artifacts
        farm db relocate /home/artifacts s3://films/artifacts
    """
    before, after = (word.rstrip("/") if "://" in word else str(Path(word).absolute()) for word in (old, new))
    if "://" not in after and not Path(after).is_dir():
        raise InputError(f"there is no folder {after}; move the artifacts first")
    count = repair.relocate_artifacts(farm.ledger, before, after)
    click.echo(f"{count} artifacts are looked for in {after} now")
