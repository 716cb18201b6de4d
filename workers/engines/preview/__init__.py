"""The embedded engine: one photo talks, on a CPU, without a large model.

Three small face models read the portrait once.  Our own speech network turns the audio into eight curves of the mouth.
Each frame is then one analytic warp of the photo, with a drawn inner mouth, blinks, brows and a little head motion.

Every frame is a pure function of (portrait, audio, settings, seed, absolute frame number).  A segment that starts
afresh therefore equals the same stretch of a film rendered in one go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.engines.contract import Engine


def make_engine(settings: Mapping[str, Any]) -> Engine:
    """The engine, not yet loaded.

    `settings` are the worker's own: {"threads": n} frames are drawn at once; 0 or none means one per core.
    Importing this package stays cheap: OpenCV is imported here.
    """
    from workers.engines.preview.engine import PreviewEngine

    return PreviewEngine(threads=int(settings.get("threads", 0)))
