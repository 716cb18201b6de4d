"""The ledger: the one truth of the farm, and the only door to SQLAlchemy."""

from farm.ledger.store import Ledger, open_ledger

__all__ = ["Ledger", "open_ledger"]
