"""What device time costs in money, by the configured rates."""

from __future__ import annotations

from collections.abc import Mapping

from farm.config import RateSettings


def price(seconds_by_device: Mapping[str, float], rates: RateSettings) -> float:
    """Money for seconds spent on device sets such as `cuda:0` or `npu:2,3,4,5`; each device of a set is paid for.

    A kind without a rate costs nothing.
    """
    total = 0.0
    for device, seconds in seconds_by_device.items():
        kind, _, numbers = device.partition(":")
        total += seconds / 3600.0 * rates.per_device_hour.get(kind, 0.0) * (numbers.count(",") + 1)
    return total


def shown(money: float, rates: RateSettings) -> str:
    """`12.50 EUR`; without a currency the bare figure."""
    return f"{money:.2f} {rates.currency}".strip()
