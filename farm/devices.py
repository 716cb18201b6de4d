"""Device sets: what `cuda:0`, `npu:2,3` or `cpu` mean, and the variables that make a host see just those devices."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from farm.errors import ConfigError

_FORM = re.compile(r"(?P<kind>cuda|npu)(:(?P<ids>[^:]+))?|cpu")
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Fa-f-]+")
_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}


@dataclass(frozen=True, slots=True)
class DeviceSet:
    """Fixed visible devices of one host."""

    kind: str  # "cpu", "cuda" or "npu"
    ids: tuple[str, ...] = ()  # indices or UUIDs, in rank order

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{','.join(self.ids)}"

    @property
    def ranks(self) -> int:
        """Processes that a host needs on this set."""
        return max(1, len(self.ids))

    def beside(self, other: DeviceSet) -> DeviceSet:
        """These devices and then the other's; the processor needs no place."""
        return self if other.kind == "cpu" else DeviceSet(self.kind, (*self.ids, *other.ids))

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """`base` (the process's own by default) with just these devices visible and no others of any kind."""
        env = dict(os.environ if base is None else base)
        for kind, variable in _VISIBLE.items():
            env.pop(variable, None)
            if kind == self.kind:
                env[variable] = ",".join(self.ids)
        if self.kind != "cuda":
            env[_VISIBLE["cuda"]] = ""  # unset would mean all
        else:
            env.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order in which nvidia-smi counts
        return env


def parse_devices(text: str) -> DeviceSet:
    """`cpu`, `cuda:0`, `cuda:2,3`, `cuda:GPU-uuid`, `npu:2,3,4,5`.  Raises ConfigError."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"devices = {text!r} is no device set; write cpu, cuda:0, cuda:2,3, cuda:GPU-… or npu:2,3,4,5"
        )
    kind = match["kind"]
    if kind is None:
        return DeviceSet("cpu")
    ids = tuple(part.strip() for part in (match["ids"] or "0").split(","))
    for part in ids:
        if not (part.isdigit() or (kind == "cuda" and _UUID.fullmatch(part))):
            raise ConfigError(f"devices = {text!r}: {part!r} is neither an index nor a GPU's UUID")
    if len(set(ids)) != len(ids):
        raise ConfigError(f"devices = {text!r} names a device twice")
    return DeviceSet(kind, ids)
