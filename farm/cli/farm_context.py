"""What every command is handed: the settings and the ledger, opened when first asked for."""

from __future__ import annotations

from functools import cached_property

from farm.config import Settings, load_settings
from farm.ledger import Ledger, open_ledger
from farm.ledger.migrate import ensure_current


class Farm:
    """One farm as the command line sees it."""

    @cached_property
    def settings(self) -> Settings:
        return load_settings()

    @cached_property
    def ledger(self) -> Ledger:
        ledger = open_ledger(self.settings.ledger)
        ensure_current(ledger)
        return ledger
