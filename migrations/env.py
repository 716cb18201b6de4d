"""Alembic's entry: runs the migrations on a ledger that farm.ledger.migrate hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from farm.ledger.store import Ledger
from farm.ledger.tables import Table

ADVISORY_LOCK = 0x6661726D  # "farm": two machines that start together migrate one after the other


def run() -> None:
    ledger: Ledger = context.config.attributes["ledger"]
    engine = ledger.engine.execution_options(farm_write=True)
    with engine.connect() as connection:
        if not ledger.is_sqlite:
            # A migration that waits for a lock behind a long query must not stop every worker behind itself.
            connection.execute(text("SET lock_timeout = '10s'"))
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
            connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Table.metadata,
            render_as_batch=ledger.is_sqlite,
            # One transaction, on SQLite too, from the question which revision there is to the last step: nobody sees a
            # ledger that is half made, and of two processes that make it at once the second finds nothing left to do.
            transactional_ddl=True,
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
        if not ledger.is_sqlite:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
            connection.commit()


run()
