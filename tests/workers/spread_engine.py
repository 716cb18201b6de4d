"""The fake engine whose every chunk needs all ranks: their numbers are gathered by gloo into the chunk's colours.

Besides the fake engine's faults, `nan@10#1` makes rank 1's number none, which every rank then finds out.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import fake_engine
import torch

from farm.errors import EngineError
from workers.engines.contract import FilmRequest, LoadReport
from workers.engines.ranks import Ranks, join_ranks


class SpreadSession(fake_engine.FakeSession):
    ranks: Ranks

    def step(self) -> Any:
        prompt = self.film.prompt
        number = torch.tensor([float(self.frame)])
        if "nan" in fake_engine.faults(prompt, self.frame, set()):
            number[0] = math.nan
        others = ";".join(part for part in prompt.split(";") if "nan" not in part)
        for kind in fake_engine.faults(others, self.frame, self.done):
            fake_engine.misbehave(kind)
        heard = self.ranks.gather(number)
        if not torch.isfinite(heard).all():
            raise EngineError("a number is none")
        self.state = hashlib.sha256(self.state + str(float(heard.mean())).encode()).digest()
        return super().step()


class SpreadEngine(fake_engine.FakeEngine):
    def load(self) -> LoadReport:
        torch.set_num_threads(1)
        os.environ.update({"MASTER_PORT": os.environ["FAKE_PORT"]} if "FAKE_PORT" in os.environ else {})
        self.ranks = join_ranks(torch.device("cpu"))
        return super().load()

    def begin(self, film: FilmRequest, first_frame: int, carry: bytes | None) -> Any:
        session = SpreadSession(film, first_frame, carry, float(self.settings.get("pace", 0)))
        session.ranks = self.ranks
        told, _ = self.ranks.tell(lambda: ({"seed": film.seed}, {"state": torch.tensor([1.5, -0.5])}))
        assert told == {"seed": film.seed}
        return session


def make_engine(settings: Mapping[str, Any]) -> SpreadEngine:
    return SpreadEngine(settings)
