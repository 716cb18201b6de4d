"""Which cards a machine has and who holds them; scripts on PATH stand in for the drivers' tools."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm import cards
from farm.cards import CardToolFailed, claim_cards, holder_of, list_cards, name_cards, same_cards
from farm.config import load_settings
from farm.devices import parse_devices
from farm.doctor import Finding, examine
from farm.errors import ConfigError, DeviceFault
from farm.roster import load_roster

NVIDIA = """\
0, GPU-8a56f1c2-0000-1111-2222-333344445555, NVIDIA H200, 1024, 143771, 570.86.15
1, GPU-9b67e2d3-0000-1111-2222-333344445555, NVIDIA H200, [N/A], 143771, 570.86.15
"""
NPU = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc2                 Version: 24.1.rc2                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B2               | OK            | 93.6        40                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3161 / 65536         |
+===========================+===============+====================================================+
| 1     910B2               | Warning       | 95.1        41                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          2048 / 65536         |
+===========================+===============+====================================================+
| 0     24576               | python        | 100         |
"""
TWO_CHIPS = """\
| npu-smi 25.0                     Version: 25.0                                                 |
| 3     Ascend910           | OK            | 170.1       37                0    / 0             |
| 0     6                   | 0000:9D:00.0  | 0           0    / 0          3412 / 65536         |
| 3     Ascend910           | OK            | -           37                0    / 0             |
| 1     7                   | 0000:9F:00.0  | 0           0    / 0          3390 / 65536         |
"""
FIRST = "GPU-8a56f1c2-0000-1111-2222-333344445555"


class Tools:
    """What nvidia-smi and npu-smi say on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def say(self, tool: str, text: str, code: int = 0) -> None:
        (self.folder / f"{tool}.txt").write_text(text)
        script = self.folder / tool
        script.write_text(
            f'#!/bin/sh\necho "$@" > {self.folder}/{tool}.argv\ncat {self.folder}/{tool}.txt\nexit {code}\n'
        )
        script.chmod(0o755)

    def asked(self, tool: str) -> str:
        return (self.folder / f"{tool}.argv").read_text().strip()


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    made = Tools(tmp_path / "tools")
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    monkeypatch.setenv("FARM_CARD_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return made


def test_nvidia_cards_are_listed(tools: Tools) -> None:
    tools.say("nvidia-smi", NVIDIA)
    first, second = list_cards("cuda")
    assert (first.index, first.uuid, first.name, first.used_mb, first.driver) == (
        *("0", FIRST, "NVIDIA H200"),
        *(1024, "570.86.15"),
    )
    assert (second.used_mb, second.total_mb) == (0, 143771)
    fields = "index,uuid,name,memory.used,memory.total,driver_version"
    assert tools.asked("nvidia-smi") == f"--query-gpu={fields} --format=csv,noheader,nounits"


def test_npus_are_listed_by_the_number_that_makes_them_visible(tools: Tools) -> None:
    tools.say("npu-smi", NPU)
    found = [(card.index, card.name, card.health, card.used_mb, card.total_mb) for card in list_cards("npu")]
    assert found == [("0", "910B2", "OK", 3161, 65536), ("1", "910B2", "Warning", 2048, 65536)]
    assert (list_cards("npu")[0].driver, tools.asked("npu-smi")) == ("24.1.rc2", "info")
    tools.say("npu-smi", TWO_CHIPS)
    assert [card.index for card in list_cards("npu")] == ["6", "7"]


def test_a_tool_that_is_missing_lists_nothing_and_one_that_fails_is_told(tools: Tools) -> None:
    assert list_cards("cuda") == list_cards("npu") == list_cards("cpu") == []
    tools.say("nvidia-smi", "NVIDIA-SMI has failed because it couldn't communicate\nwith the NVIDIA driver.\n", 9)
    with pytest.raises(CardToolFailed, match=r"nvidia-smi: NVIDIA-SMI has failed .* with the NVIDIA driver"):
        list_cards("cuda")


def test_a_uuid_and_an_index_can_be_one_card(tools: Tools) -> None:
    tools.say("nvidia-smi", NVIDIA)
    assert name_cards(parse_devices("cuda:1,0"), list_cards("cuda"))[1] == FIRST
    assert same_cards(parse_devices("cuda:0"), parse_devices("cuda:GPU-8a56")) == [FIRST]
    assert same_cards(parse_devices("cuda:1"), parse_devices("cuda:GPU-8a56")) == []
    assert same_cards(parse_devices("cuda:0,1"), parse_devices("cuda:1,2")) == ["cuda-1"]
    assert same_cards(parse_devices("cuda:0"), parse_devices("npu:0")) == []
    assert same_cards(parse_devices("cpu"), parse_devices("cpu")) == []


def test_a_roster_that_names_one_card_in_two_ways_is_refused(tools: Tools, tmp_path: Path) -> None:
    tools.say("nvidia-smi", NVIDIA)
    (tmp_path / "home/workers.toml").write_text(
        "[workers.a]\ndevices = 'cuda:0'\n[workers.b]\ndevices = 'cuda:GPU-8a56f1c2'\n"
    )
    with pytest.raises(ConfigError, match="workers a and b both claim cuda:0 / cuda:GPU-8a56f1c2"):
        load_roster()


def hold(devices: str, who: str) -> str:
    return (
        "import sys, time; from farm.cards import claim_cards; from farm.devices import parse_devices\n"
        f"claim = claim_cards([parse_devices({devices!r})], {who!r}); print('held', flush=True); time.sleep(600)"
    )


@pytest.fixture
def another(tools: Tools) -> Iterator[subprocess.Popen[str]]:
    """Another farm's process that holds cuda:0."""
    tools.say("nvidia-smi", NVIDIA)
    argv = [sys.executable, "-c", hold("cuda:0", "worker gpu0 of the farm in /srv/a")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_card_belongs_to_one_process_of_the_machine(
    another: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "YIELD_SECONDS", 0.2)
    held = rf"card cuda:GPU-8a56 \({FIRST}\) is held by worker gpu0 of the farm in /srv/a \(pid {another.pid}\)"
    with pytest.raises(DeviceFault, match=held):
        claim_cards([parse_devices("cuda:GPU-8a56")], "another")
    with pytest.raises(DeviceFault, match="card cuda:0 "):
        claim_cards([parse_devices("cuda:1"), parse_devices("cuda:0")], "another")
    other = claim_cards([parse_devices("cuda:1")], "another")  # which the refused claim did not keep
    assert holder_of("GPU-9b67e2d3-0000-1111-2222-333344445555") == cards.Holder("another", os.getpid())
    other.release()
    os.kill(another.pid, signal.SIGKILL)
    another.wait()
    claim_cards([parse_devices("cuda:0")], "the next").release()
    assert holder_of(FIRST) is None


def test_a_card_is_shared_by_those_alone_who_all_share_it(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "YIELD_SECONDS", 0.1)
    first = claim_cards([parse_devices("npu:3")], "one", shares=True)
    second = claim_cards([parse_devices("npu:3")], "two", shares=True)
    assert holder_of("npu-3") == cards.Holder("two", os.getpid(), shares=True)
    first.release()
    with pytest.raises(DeviceFault, match=r"held by two .* or to several that all have share_card"):
        claim_cards([parse_devices("npu:3")], "three")
    second.release()
    assert holder_of("npu-3") is None
    alone = claim_cards([parse_devices("npu:3")], "three")
    with pytest.raises(DeviceFault, match=r"card npu:3 is held by three"):
        claim_cards([parse_devices("npu:3")], "four", shares=True)
    alone.release()


def test_a_card_stays_taken_until_whoever_was_given_its_lock_is_gone(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "YIELD_SECONDS", 0.1)
    claim = claim_cards([parse_devices("npu:3")], "a worker")
    with subprocess.Popen(["sleep", "600"], pass_fds=claim.descriptors) as heir:
        claim.release()
        with pytest.raises(DeviceFault, match=r"card npu:3 is held by a worker"):
            claim_cards([parse_devices("npu:3")], "the next")
        heir.kill()
    claim_cards([parse_devices("npu:3")], "the next").release()


def test_the_processor_is_nobodys(tools: Tools) -> None:
    assert claim_cards([parse_devices("cpu")], "a").descriptors == []


def test_the_lock_folder_is_everybodys_and_no_link(tools: Tools, tmp_path: Path) -> None:
    claim_cards([parse_devices("cuda:0")], "a").release()
    assert (tmp_path / "locks").stat().st_mode & 0o7777 == 0o1777
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "locks").iterdir()} == {0o666}
    (tmp_path / "locks").rename(tmp_path / "elsewhere")
    (tmp_path / "locks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceFault, match=r"the folder of card locks .* cannot be used"):
        claim_cards([parse_devices("cuda:0")], "a")


def test_the_doctor_tells_every_card_and_who_holds_it(
    another: subprocess.Popen[str], tools: Tools, tmp_path: Path
) -> None:
    tools.say("npu-smi", NPU)
    (tmp_path / "home/workers.toml").write_text("[workers.a]\ndevices = 'cuda:1,7'\n[workers.b]\ndevices = 'npu:0'\n")
    found = [finding for finding in examine(load_settings()) if finding.what.startswith(("card ", "worker a"))]
    held = f"held by worker gpu0 of the farm in /srv/a (pid {another.pid})"
    h200 = "NVIDIA H200, {}, driver 570.86.15; {} of 140.4 GiB in use; {}"
    npu = "910B2, driver 24.1.rc2, health {}; {} of 64.0 GiB in use; held by no farm"
    assert found == [
        Finding(
            "worker a", "mind", "prepares and assembles on cuda:1,7 as 2 ranks; does not run", "`farm up` starts it"
        ),
        Finding("card cuda:0", "well", h200.format(FIRST, "1.0", held)),
        Finding("card cuda:1", "well", h200.format(FIRST.replace("8a56f1c2", "9b67e2d3"), "0.0", "held by no farm")),
        Finding(
            "worker a", "wrong", "cuda:7 is not there; nvidia-smi lists cuda:0, cuda:1", "mend devices in workers.toml"
        ),
        Finding("card npu:0", "well", npu.format("OK", "3.1")),
        Finding("card npu:1", "wrong", npu.format("Warning", "2.0"), "npu-smi info tells more"),
    ]
