"""What the repository holds: nothing of where it was written, settings that are explained, containers that parse."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

# Written in two halves, so that this file is not found by itself.
FOREIGN_WORDS = [
    a + b
    for a, b in [
        ("/wo", "rk/"),
        (".lib", "rary/"),
        ("shared/sp", "ecs"),
        ("shared/des", "ign"),
        ("shared/proto", "type"),
        ("issues sh", "ow"),
        ("/opt/wh", "eels"),
        ("/opt/py", "pi"),
        ("py", "pi.org"),
        ("python", "hosted.org"),
        ("deb.deb", "ian.org"),
        ("registry.npm", "js"),
    ]
]


def repository_files() -> list[Path]:
    """All files that are or will be committed."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_the_place_where_it_was_written() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {word}"
        for path in repository_files()
        for word in FOREIGN_WORDS
        if word.encode() in path.read_bytes()
    }
    assert not found


def test_every_script_is_executable_and_says_what_it_does() -> None:
    for path in sorted((ROOT / "scripts").iterdir()):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not text.startswith("#!"):
            continue
        assert path.stat().st_mode & 0o100, f"{path.name} is not executable"
        second = text.splitlines()[1]
        assert second.startswith(("# ", '"""')), f"{path.name} does not begin with what it does"


# Settings


def explained_keys(path: Path) -> dict[str, str]:
    """The keys of a TOML file, section included, with the comment above them, which keys that stand together share."""
    comment, section, keys, in_comment = "", "", {}, False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            comment = f"{comment if in_comment else ''} {line.lstrip('# ')}".strip()
        elif heading := re.fullmatch(r"\[(\w+)\]", line):
            section, comment = f"{heading[1]}.", ""
        elif key := re.match(r"(\w+) *=", line):
            keys[section + key[1]] = comment
        in_comment = line.startswith("#")
    return keys


def flat(model: Any, prefix: str = "") -> set[str]:
    """The settings of a pydantic model with their sections."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            names |= flat(inner, f"{prefix}{name}.")
        else:
            names.add(prefix + name)
    return names


def test_every_setting_is_in_farm_toml_with_its_meaning() -> None:
    from farm.config import Settings

    keys = explained_keys(ROOT / "configs/farm.toml")
    assert set(keys) == flat(Settings) - {"home"}
    assert not [key for key, comment in keys.items() if len(comment) < 20]


def test_every_key_of_a_worker_is_explained_in_workers_toml() -> None:
    from farm.roster import WorkerSpec

    text = (ROOT / "configs/workers.toml").read_text(encoding="utf-8")
    explained = set(re.findall(r"^#   (\w+)  +\w", text, re.MULTILINE))
    assert explained == set(WorkerSpec.model_fields) - {"name"}


def test_every_model_file_is_read() -> None:
    for path in sorted((ROOT / "configs/models").glob("*.toml")):
        with path.open("rb") as file:
            assert tomllib.load(file)


def test_every_variable_that_the_code_reads_is_documented() -> None:
    documented = set(re.findall(r"`(FARM_[A-Z_]+)`", (ROOT / "docs/settings.md").read_text(encoding="utf-8")))
    with (ROOT / "configs/farm.toml").open("rb") as file:  # explains each of its keys itself
        for key, value in tomllib.load(file).items():
            inner = [f"{key}__{name}" for name in value] if isinstance(value, dict) else [key]
            documented |= {f"FARM_{name.upper()}" for name in inner}
    read: set[str] = set()
    files = [path for package in ("farm", "workers", "scripts") for path in (ROOT / package).rglob("*")]
    for path in [*files, ROOT / "tests/conftest.py"]:
        if path.is_file() and path.suffix in ("", ".py") and "__pycache__" not in path.parts:
            read |= set(re.findall(r"""["'${]+(FARM_[A-Z_]+[A-Z])\b""", path.read_text(encoding="utf-8")))
    assert read - documented == set()


# Containers


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def test_workers_on_cards_wait_for_their_profile_and_share_the_locks_of_cards(compose: dict[str, Any]) -> None:
    profiles = {name: s["profiles"] for name, s in compose["services"].items() if "profiles" in s and name != "farm"}
    assert profiles == {
        "render-worker-cuda-0": ["cuda"],
        "render-worker-cuda-23": ["cuda-group"],
        "render-worker-npu-0123": ["npu"],
    }
    for name in profiles:
        service = compose["services"][name]
        assert service["command"] == ["worker", name.removeprefix("render-worker-")]
        assert service["depends_on"] == compose["services"]["cpu-worker"]["depends_on"], name
        assert service["stop_signal"] == "SIGTERM" and service["stop_grace_period"] == "40s"
        assert service["environment"]["FARM_CARD_LOCKS"] == "/cards" and "cards:/cards" in service["volumes"]
        assert (
            service["environment"]["FARM_LEDGER_URL"] == compose["services"]["farm"]["environment"]["FARM_LEDGER_URL"]
        )
    devices = {n: compose["services"][n]["deploy"]["resources"]["reservations"]["devices"] for n in list(profiles)[:2]}
    assert [one["device_ids"] for (one,) in devices.values()] == [["0"], ["2", "3"]]
    # More words there would replace the Dockerfile's: CUDA, nvidia-smi and the encoder unit.
    assert all(one["capabilities"] == ["gpu"] for (one,) in devices.values())
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "\nENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video\n" in dockerfile


def test_every_container_of_the_farm_reads_one_file_of_workers(compose: dict[str, Any]) -> None:
    shipped = tomllib.loads((ROOT / "configs/workers.toml").read_text(encoding="utf-8"))["workers"]
    for name, service in compose["services"].items():
        if service.get("image", "").startswith("farm"):
            # A mount over a file of a volume leaves an empty one there for whoever does not mount it.
            assert "${FARM_WORKERS:-./configs/workers.toml}:/data/workers.toml:ro" in service["volumes"], name
            if service["command"][0] == "worker" and "profiles" not in service:
                assert service["command"][1] in shipped, name


def test_every_container_of_a_worker_is_as_healthy_as_its_worker(compose: dict[str, Any]) -> None:
    workers = {n: s for n, s in compose["services"].items() if s.get("command", [""])[0] == "worker"}
    assert len(workers) == 5
    for name, service in workers.items():
        check = ["CMD", "farm", "workers", "check", service["command"][1]]
        assert service["healthcheck"]["test"] == check, name


def test_every_unit_starts_a_command_of_the_farm() -> None:
    started = {}
    for path in (ROOT / "scripts/systemd").glob("*.service"):
        (line,) = re.findall(
            r"^ExecStart=(?:%h|/srv/farm)/farm/\.venv/bin/farm (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        started[path.name] = line
    assert started == {
        "farm.service": "up --foreground",
        "farm-worker@.service": "worker %i",
        "farm-nightly@.service": "nightly %h/.config/farm/%i.toml",
    }


def test_every_service_waits_for_services_that_exist(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, f"{name} waits for {needed}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], f"{needed} has no health check"


def test_no_port_is_open_beyond_loopback(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_farm_runs_as_nobody_in_particular_in_its_containers(compose: dict[str, Any]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE) == ["farm"]
    for name, service in compose["services"].items():
        if service.get("image", "").startswith("farm"):
            assert service["cap_drop"] == ["ALL"], name


def test_every_variable_of_the_compose_file_has_an_example_or_a_default(compose: dict[str, Any]) -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    required = set(re.findall(r"(?<!\$)\$\{(\w+)(?::\?[^}]*)?\}", text))
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert required <= set(re.findall(r"^(\w+)=", example, re.MULTILINE))


def test_what_the_dockerfile_copies_is_sent_to_the_builder() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    }
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)


# Examples


def test_the_example_batch_names_files_that_are_there_and_credited() -> None:
    from farm.batch import read_batch

    folder = ROOT / "examples"
    rows = read_batch(folder / "batch.csv")
    used = {str(row.cells[column]) for row in rows for column in ("portrait", "audio")}
    assert len(rows) >= 3
    assert all((folder / name).is_file() for name in used)
    shipped = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in (".jpg", ".png", ".flac", ".mp3", ".opus", ".wav")
    }
    credits = (folder / "README.md").read_text(encoding="utf-8")
    assert used == shipped
    assert not [name for name in shipped if f"| {name} |" not in credits]


def test_the_example_media_are_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "examples").rglob("*") if path.is_file()) < 4_000_000
