"""A worker on an Ascend NPU: what is started, in which order and with which surroundings.

No NPU is here.  CANN's script and the interpreter are stand-ins that write down what happens to them; the host, its
shell and its child are real.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from farm.devices import parse_devices
from farm.errors import ConfigError, DeviceFault
from workers.host.parent import Host

from .conftest import fake_spec

# As CANN's own: it puts its folders before what is there, and a variable that only it knows.
SET_ENV = """
echo "set_env.sh: devices $ASCEND_RT_VISIBLE_DEVICES" >>"{record}"
export ASCEND_TOOLKIT_HOME=/usr/local/Ascend/ascend-toolkit/latest
export LD_LIBRARY_PATH="$ASCEND_TOOLKIT_HOME/lib64:$LD_LIBRARY_PATH"
export PYTHONPATH="$ASCEND_TOOLKIT_HOME/python/site-packages:$PYTHONPATH"
export HCCL_WHITELIST_DISABLE=1
"""
PYTHON = """#!/bin/bash
echo "python: $*" >>"{record}"
"{real}" -c 'import json, os; print(json.dumps(dict(os.environ)))' >"{surroundings}"
exec "{real}" "$@"
"""
FROM_SCRIPT = ("ASCEND_TOOLKIT_HOME", "LD_LIBRARY_PATH", "HCCL_WHITELIST_DISABLE")


class Machine:
    """Files of a machine with CANN, and what they wrote down."""

    def __init__(self, folder: Path) -> None:
        self.record = folder / "record"
        self.surroundings = folder / "surroundings"
        self.env_script = folder / "Ascend 昇腾" / "set_env.sh"
        self.python = folder / "model python" / "python"
        for path in (self.env_script, self.python):
            path.parent.mkdir()
        self.env_script.write_text(SET_ENV.format(record=self.record))
        self.python.write_text(PYTHON.format(record=self.record, real=sys.executable, surroundings=self.surroundings))
        self.python.chmod(0o755)
        self.log = folder / "host.log"

    def host(self, **changes: object) -> Host:
        spec = {
            "devices": parse_devices("npu:2"),
            "python": str(self.python),
            "env_script": str(self.env_script),
            **changes,
        }
        return Host(fake_spec(self.log, spec=spec))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def started(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/lib/driver")
    host = machine.host()
    host.start()
    yield host
    host.close()


def test_the_env_script_is_sourced_before_the_interpreter_starts_and_both_once(machine: Machine, started: Host) -> None:
    first, second = machine.record.read_text().splitlines()
    assert first == "set_env.sh: devices 2"
    word, _, argv = second.partition(" ")
    module, name, descriptor, engine = argv.split()
    assert (word, module, name, engine) == ("python:", "-m", "workers.host.child", "fake_engine")
    assert descriptor.isdigit()
    assert started.is_alive


def test_the_interpreter_has_the_scripts_variables_and_only_this_workers_device(
    machine: Machine, started: Host
) -> None:
    found = json.loads(machine.surroundings.read_text())
    toolkit = "/usr/local/Ascend/ascend-toolkit/latest"
    assert {name: found[name] for name in FROM_SCRIPT} == {
        "ASCEND_TOOLKIT_HOME": toolkit,
        "LD_LIBRARY_PATH": f"{toolkit}/lib64:/lib/driver",
        "HCCL_WHITELIST_DISABLE": "1",
    }
    assert found["ASCEND_RT_VISIBLE_DEVICES"] == "2"
    assert found["CUDA_VISIBLE_DEVICES"] == ""
    ours = Path(__file__).resolve().parents[2]
    assert found["PYTHONPATH"].split(os.pathsep)[:2] == [f"{toolkit}/python/site-packages", str(ours)]


def test_a_script_that_fails_is_told_with_its_last_words(machine: Machine) -> None:
    machine.env_script.write_text("echo 'CANN 8.0 does not fit this driver'\nreturn 3\n")
    with (
        closing(machine.host()) as host,
        pytest.raises(DeviceFault, match=r"exited with 3 .*CANN 8.0 does not fit this driver"),
    ):
        host.start()
    assert not machine.record.exists()


def test_a_script_that_is_not_there_is_named(machine: Machine, tmp_path: Path) -> None:
    with (
        closing(machine.host(env_script="/no/set_env.sh")) as host,
        pytest.raises(ConfigError, match=r"env_script '/no/set_env.sh' does not exist"),
    ):
        host.start()
