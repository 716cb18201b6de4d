"""Whether this machine sees what the farm published: of several machines, one may lack the shared folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from farm.ledger import Ledger, read
from farm.roster import machine_name


def why_blind(ledger: Ledger) -> str | None:
    """Why this machine should take no work: others publish where it sees nothing.  None where it may.

    What it prepared, nobody else could go on with.  A machine alone may go on, whatever became of its old files, and a
    ledger in SQLite is one machine's.
    """
    if ledger.is_sqlite or all(worker.machine == machine_name() for worker in read.workers(ledger)):
        return None
    return why_unseen(read.newest_places(ledger), machine_name())


def why_unseen(places: Sequence[str], machine: str) -> str | None:
    """Why this machine, of this name, cannot go on with files that others published, the newest first; None if it can.

    A machine whose shared folder is not mounted, or mounted elsewhere, sees none of the folders that they lie in: what
    it prepared would be missing everywhere else.  One folder that is there will do, since files may be lost one by one.
    """
    if not places or any("://" in place for place in places):
        return None
    folders = [Path(place).parent for place in places]
    if any(folder.is_dir() for folder in folders):
        return None
    return (
        f"machine {machine} does not see {folders[0]}; mount the shared folder there,"
        " or run `farm db relocate` if it has moved (if its files are lost for good, make it)"
    )
