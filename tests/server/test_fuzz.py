"""Generated requests against every operation of the OpenAPI document; a real server, bounded in time."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, checks

from tests.farm_process import FarmProcess

EXAMPLES = 12
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def test_no_request_makes_the_server_fail_or_break_its_own_document(idle_farm: FarmProcess) -> None:
    schema = schemathesis.openapi.from_url(f"{idle_farm.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    tried = [attack(operation, idle_farm) for operation in operations if operation.path != "/v1/feed"]  # never ends
    assert sum(tried) > len(operations) * 3


def attack(operation: Any, farm: FarmProcess) -> int:
    """Sends generated requests to one operation; how many."""
    tried = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def send(case: Case) -> None:
        nonlocal tried
        tried += 1
        if operation.path == "/v1/generate" and isinstance(case.body, dict):
            case.body = case.body | {"async_run": True}  # nobody would render it
        response = case.call(headers={"x-api-key": farm.key}, timeout=120)
        case.validate_response(response, checks=CHECKS)

    send()
    return tried
