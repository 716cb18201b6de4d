"""Bringing a ledger to the newest shape.  Migrations are numbered and reversible; see migrations/versions.

Alembic is imported where it is needed: every command asks for the ledger's revision, and almost none migrates.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from farm.errors import InputError, LedgerError
from farm.ledger.store import Ledger, explain_unreachable
from farm.ledger.tables import Table
from farm.paths import shipped

if TYPE_CHECKING:
    from alembic.config import Config

log = logging.getLogger(__name__)


def _config(ledger: Ledger) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(shipped("migrations")))
    config.attributes["ledger"] = ledger
    return config


def all_revisions() -> list[str]:
    """Newest first.  A migration's revision is the number that its file begins with."""
    files = (shipped("migrations") / "versions").glob("[0-9]*.py")
    return sorted((path.name.partition("_")[0] for path in files), reverse=True)


def newest_revision() -> str:
    return all_revisions()[0]


def current_revision(ledger: Ledger) -> str | None:
    """The ledger's shape; None for an empty database.  Raises LedgerError when it does not answer."""
    try:
        with ledger.engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return revision
    except DBAPIError as error:
        raise explain_unreachable(error, ledger.url) from error


def is_newer(revision: str | None) -> bool:
    """Whether a ledger of this shape was made by a newer farm."""
    return revision is not None and revision not in all_revisions()


def refuse_newer(have: str | None) -> None:
    """Raises LedgerError for the shape of a newer farm's ledger."""
    if is_newer(have):
        raise LedgerError(f"the ledger is at revision {have}, which this farm does not know; a newer farm made it")


def _refuse_unknown(ledger: Ledger, revision: str) -> None:
    """Raises LedgerError for a newer farm's ledger, InputError for a revision that there is not."""
    refuse_newer(current_revision(ledger))
    known = ["base", *reversed(all_revisions()), "head"]
    if revision not in known:
        raise InputError(f"there is no revision {revision!r}; there are {', '.join(known)}")


def upgrade(ledger: Ledger, revision: str = "head") -> None:
    """Raises LedgerError, InputError."""
    from alembic import command

    _refuse_unknown(ledger, revision)
    command.upgrade(_config(ledger), revision)


def downgrade(ledger: Ledger, revision: str) -> None:
    """Raises LedgerError, InputError."""
    from alembic import command

    _refuse_unknown(ledger, revision)
    command.downgrade(_config(ledger), revision)


def differences(ledger: Ledger) -> list[str]:
    """How the database differs from farm/ledger/tables.py; empty when it is right."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [str(difference) for difference in compare_metadata(context, Table.metadata)]


def ensure_current(ledger: Ledger) -> None:
    """Make a new ledger; bring a private SQLite one up to date; refuse to touch a shared one that is older.

    A shared ledger is upgraded by a person (`farm db upgrade`), because workers of the older farm may still use it.
    """
    have, want = current_revision(ledger), newest_revision()
    if have == want:
        return
    refuse_newer(have)
    if have is None or ledger.is_sqlite:
        # Another process may have made the ledger between two questions, hence the third.
        if have is None and inspect(ledger.engine).has_table("jobs") and current_revision(ledger) is None:
            raise LedgerError(
                "this database holds tables named like the farm's that the farm did not make; use another"
            )
        upgrade(ledger)
        return
    raise LedgerError(
        f"the ledger is at revision {have}, this farm needs {want}; drain the workers, then run `farm db upgrade`"
    )
