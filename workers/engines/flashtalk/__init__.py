"""SoulX-FlashTalk 14B: one portrait and speech to a film, 28 new frames a step.

Only `make_engine` is public.  Nothing here imports torch until it is called, so that the host can read this package
before it has fixed the visible devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.engines.contract import Engine


def make_engine(settings: Mapping[str, Any]) -> Engine:
    """An engine that is not loaded yet.  Raises ConfigError for a setting that it does not know."""
    from workers.engines.flashtalk.engine import FlashTalkEngine
    from workers.engines.flashtalk.settings import EngineSettings

    return FlashTalkEngine(EngineSettings.from_mapping(settings))
