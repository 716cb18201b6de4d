"""SoulX-FlashTalk 14B: one portrait and speech to a film, 28 new frames a step.

Only `make_engine` is public.  Nothing here imports torch until it is called, so that the host can read this package
before it has fixed the visible devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from farm.errors import ConfigError

if TYPE_CHECKING:
    from workers.engines.contract import Engine


def make_engine(settings: Mapping[str, Any]) -> Engine:
    """An engine that is not loaded yet: our own, or upstream's code with `engine = "upstream"`.

    Raises ConfigError for a setting that it does not know.
    """
    chosen = settings.get("engine", "own")
    if chosen == "upstream":
        from workers.engines.upstream.flashtalk import make_engine as make_upstream

        return make_upstream(settings)
    if chosen != "own":
        raise ConfigError(f"the FlashTalk model: engine must be own or upstream, not {chosen!r}")
    from workers.engines.flashtalk.engine import FlashTalkEngine
    from workers.engines.flashtalk.settings import EngineSettings

    return FlashTalkEngine(EngineSettings.from_mapping({k: v for k, v in settings.items() if k != "engine"}))
