"""docs/api.md and the OpenAPI document name the same routes."""

from __future__ import annotations

import re

import httpx

from tests.farm_process import ROOT


def test_every_route_is_documented_and_every_documented_route_exists(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(GET|POST|DELETE|PATCH) (/[^`\s?]*)`", text))
    assert served - told == set()
    assert told - served - {("GET", "/v1/uploads/{id}")} == set()


def test_every_metric_is_documented(client: httpx.Client) -> None:
    named = set(re.findall(r"^# TYPE (\S+)", client.get("/metrics").text, re.MULTILINE))
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert [name for name in named if name not in text] == []


def test_dashboard_and_alerts_ask_for_metrics_that_exist(client: httpx.Client) -> None:
    import json

    import yaml

    folder = ROOT / "docs/monitoring"
    dashboard = json.loads((folder / "grafana.json").read_text(encoding="utf-8"))
    rules = yaml.safe_load((folder / "alerts.yml").read_text(encoding="utf-8"))
    asked = " ".join(
        [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    )
    named = set(re.findall(r"\bfarm_[a-z_]+", asked))
    served = set(re.findall(r"^# TYPE (\S+)", client.get("/metrics").text, re.MULTILINE))
    assert len(named) > 8
    assert {name.removesuffix("_bucket") for name in named} - served == set()
