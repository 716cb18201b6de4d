"""Device sets and the variables that make a host see just those."""

from __future__ import annotations

import pytest

from farm.devices import parse_devices
from farm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "kind", "ids", "ranks", "shown"),
    [
        ("cpu", "cpu", (), 1, "cpu"),
        (" cuda ", "cuda", ("0",), 1, "cuda:0"),
        ("cuda:3", "cuda", ("3",), 1, "cuda:3"),
        ("cuda:2,3", "cuda", ("2", "3"), 2, "cuda:2,3"),
        ("npu:2, 3 ,4,5", "npu", ("2", "3", "4", "5"), 4, "npu:2,3,4,5"),
        ("cuda:GPU-8a56-4d", "cuda", ("GPU-8a56-4d",), 1, "cuda:GPU-8a56-4d"),
        ("cuda:MIG-8a56-4d", "cuda", ("MIG-8a56-4d",), 1, "cuda:MIG-8a56-4d"),
    ],
)
def test_a_device_set_is_read_and_shown(text: str, kind: str, ids: tuple[str, ...], ranks: int, shown: str) -> None:
    devices = parse_devices(text)
    assert (devices.kind, devices.ids, devices.ranks, str(devices)) == (kind, ids, ranks, shown)
    assert parse_devices(str(devices)) == devices


@pytest.mark.parametrize(
    "text", ["", "gpu:0", "cuda:", "cuda:-1", "cuda:a", "cuda:0,,1", "npu:GPU-1", "cpu:0", "cuda:0:1", "cuda:0,0"]
)
def test_what_is_no_device_set_is_refused_with_the_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^devices = "):
        parse_devices(text)


BASE = {
    "PATH": "/bin",
    "CUDA_VISIBLE_DEVICES": "7",
    "ASCEND_RT_VISIBLE_DEVICES": "6",
    "NVIDIA_VISIBLE_DEVICES": "all",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu", {"CUDA_VISIBLE_DEVICES": ""}),
        ("cuda:2,3", {"CUDA_VISIBLE_DEVICES": "2,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ("npu:4,5", {"ASCEND_RT_VISIBLE_DEVICES": "4,5", "CUDA_VISIBLE_DEVICES": ""}),
    ],
)
def test_a_host_sees_its_devices_and_no_others_of_any_kind(text: str, expected: dict[str, str]) -> None:
    environment = parse_devices(text).environment(BASE)
    assert environment == {"PATH": "/bin", "NVIDIA_VISIBLE_DEVICES": "all", **expected}


def test_a_chosen_device_order_is_kept() -> None:
    base = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert parse_devices("cuda:0").environment(base)["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_further_devices_come_after_the_first_ones() -> None:
    npus = parse_devices("npu:2,3")
    assert str(npus.beside(parse_devices("npu:0"))) == "npu:2,3,0"
    assert npus.beside(parse_devices("cpu")) == npus
