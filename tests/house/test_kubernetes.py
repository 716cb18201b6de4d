"""The Kubernetes manifests are valid, and say what the program understands: commands, settings, workers, metrics."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import yaml

from farm.cli import cli
from farm.config import Settings
from farm.models import load_model

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs/kubernetes"
OBJECTS = [
    (path, document)
    for path in sorted(FOLDER.rglob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
STOP_SECONDS = tomllib.loads((ROOT / "configs/farm.toml").read_text(encoding="utf-8"))["host"]["stop_seconds"]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod specification of every workload."""
    for _, document in OBJECTS:
        if document["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def farm_containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for name, pod in pods():
        for container in pod["containers"]:
            if container["image"].startswith("farm"):
                yield name, pod, container


def assert_can_be_typed(words: list[str]) -> None:
    cli.load_all()
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group):
        assert rest and rest[0] in command.commands, f"farm {' '.join(words)}"
        command = command.commands[rest.pop(0)]
    command.make_context(command.name, rest, resilient_parsing=False)


def settings_variables(model: Any = Settings, prefix: str = "FARM_") -> set[str]:
    names: set[str] = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            names |= settings_variables(inner, f"{prefix}{name.upper()}__")
        else:
            names.add(prefix + name.upper())
    return names


def test_every_file_is_part_of_the_kustomization_or_an_example_of_scaling() -> None:
    found = {path.relative_to(FOLDER).as_posix() for path, _ in OBJECTS if path.parent == FOLDER}
    assert found - {"kustomization.yaml"} == set(KUSTOMIZATION["resources"])
    for generator in KUSTOMIZATION["configMapGenerator"]:
        assert all((FOLDER / name).is_file() for name in generator["files"])


def test_every_command_of_a_container_and_its_probes_can_be_typed() -> None:
    commands = [container["args"] for _, _, container in farm_containers()]
    for _, _, container in farm_containers():
        for probe in ("readinessProbe", "livenessProbe"):
            if "exec" in container.get(probe, {}):
                program, *words = container[probe]["exec"]["command"]
                assert program == "farm"
                commands.append(words)
    assert len(commands) >= 8
    for words in commands:
        assert_can_be_typed([str(word) for word in words])


def test_every_image_is_named_in_the_kustomization_and_has_no_tag_of_its_own() -> None:
    named = {image["name"] for image in KUSTOMIZATION["images"]}
    assert {container["image"] for _, _, container in farm_containers()} == named
    assert all(str(image["newTag"]) not in ("", "latest") for image in KUSTOMIZATION["images"])


def test_every_worker_of_a_pool_is_in_its_roster_and_its_queue_is_the_one_that_scales_it() -> None:
    roster = tomllib.loads((FOLDER / "workers.toml").read_text(encoding="utf-8"))["workers"]
    pools = {words[1] for _, _, c in farm_containers() if (words := c["args"])[0] == "worker"}
    assert pools == set(roster)
    model = load_model(roster["gpu"]["model"])
    queue = model.queue_for(roster["gpu"].get("preset", model.default_preset))
    for name in ("keda.yaml", "hpa.yaml"):
        assert re.findall(r'queue="([^"]+)"', (FOLDER / "autoscaling" / name).read_text()) == (
            [queue, queue] if name == "keda.yaml" else [queue]
        )


def test_every_metric_that_scales_is_served() -> None:
    source = (ROOT / "farm/server/metrics.py").read_text(encoding="utf-8")
    text = "".join(path.read_text() for path in (FOLDER / "autoscaling").iterdir())
    metrics = set(re.findall(r"farm_\w+", text))
    assert metrics and all(f'"{metric}"' in source for metric in metrics)


def test_every_variable_is_a_setting_or_documented() -> None:
    documented = set(re.findall(r"`(FARM_\w+)`", (ROOT / "docs/settings.md").read_text(encoding="utf-8")))
    (settings,) = [document["data"] for _, document in OBJECTS if document["kind"] == "ConfigMap"]
    used = set(settings) | {env["name"] for _, _, c in farm_containers() for env in c.get("env", [])}
    assert used <= settings_variables() | documented
    for _, _, container in farm_containers():
        assert {"FARM_MACHINE", "FARM_LEDGER_URL", "FARM_REDIS_URL"} <= {env["name"] for env in container["env"]}


def test_no_secret_is_written_down() -> None:
    assert not [document for _, document in OBJECTS if document["kind"] == "Secret"]
    for _, pod in pods():
        for container in pod["containers"]:
            for env in container.get("env", []):
                secret = re.search("URL|PASSWORD|AUTH|KEY", env["name"])
                assert not secret or ("value" not in env and "secretKeyRef" in env["valueFrom"]), env
    for path, _ in OBJECTS:
        assert not re.search(r"://[^/\s]*:[^/\s]+@", path.read_text(encoding="utf-8")), path


def test_every_mount_has_a_volume_and_every_claim_is_made() -> None:
    claims = {document["metadata"]["name"] for _, document in OBJECTS if document["kind"] == "PersistentVolumeClaim"}
    for name, pod in pods():
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        assert mounted == set(volumes), name
        assert {
            v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v
        } <= claims


def test_a_worker_has_time_to_give_its_segment_back() -> None:
    from workers.app import FLUSH_SECONDS

    graces = [pod["terminationGracePeriodSeconds"] for _, pod, c in farm_containers() if c["args"][0] == "worker"]
    assert graces and all(grace >= STOP_SECONDS + 15.0 + FLUSH_SECONDS + 10.0 for grace in graces)


def test_the_pods_have_no_rights() -> None:
    for name, pod in pods():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["capabilities"] == {"drop": ["ALL"]} and rights["readOnlyRootFilesystem"] is True, name
            assert rights["allowPrivilegeEscalation"] is False and "memory" in container["resources"]["limits"], name


def test_every_object_is_what_its_schema_says() -> None:
    for _, document in OBJECTS:
        if document["kind"] not in ("Kustomization", "ScaledObject"):  # not Kubernetes' own
            kubernetes_validate.validate(document, "1.34", strict=True)
