from __future__ import annotations

import json
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from llama_gguf.errors import MethodNotAllowed
from llama_gguf.gateway.openapi import BODIES, SUMMARIES, document
from llama_gguf.http1.routes import _DASHBOARD, _LOCAL, Kind, Router
from tests.support.fakes import NewRig, Rig
from tests.support.keys import BACKEND_KEY, KEY
from tests.support.messages import request


def operations(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in found["paths"].items()
        for method, operation in item.items()
    }


@pytest.mark.parametrize("needs_keys", [True, False])
@pytest.mark.parametrize("guards_metrics", [True, False])
@pytest.mark.parametrize("dashboard", [True, False])
def test_the_document_is_valid(needs_keys: bool, guards_metrics: bool, dashboard: bool) -> None:
    router = Router(expose_all=False, dashboard=dashboard)
    found = document(router, needs_keys=needs_keys, guards_metrics=guards_metrics)

    OpenAPIV31SpecValidator(found).validate()


def test_it_has_every_route_of_the_tables() -> None:
    router = Router(expose_all=False)

    assert set(operations(document(router))) == set(router.known())


def test_every_route_is_one_that_the_gateway_serves() -> None:
    router = Router(expose_all=False)
    kinds = {router.route(m.encode(), p.encode()).kind for m, p in router.known()}

    assert Kind.REFUSED not in kinds


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_the_gateways_own_paths_support_no_other_methods(method: str) -> None:
    router = Router(expose_all=False)
    found = document(router)
    for path in (*_LOCAL, *_DASHBOARD):
        if method.lower() not in found["paths"][path.decode()]:
            assert isinstance(router.route(method.encode(), path).error, MethodNotAllowed)


def test_every_route_has_a_summary_and_none_is_left_over() -> None:
    known = {path.removeprefix("/v1") for _, path in Router(expose_all=False).known()}
    dashboard = {path for path in known if path.startswith("/dashboard")}

    assert known - dashboard == set(SUMMARIES)
    assert set(BODIES) <= known


def test_without_the_dashboard_its_paths_are_not_described() -> None:
    found = document(Router(expose_all=False, dashboard=False))

    assert not [path for path in found["paths"] if "dashboard" in path]


@pytest.mark.parametrize(
    ("path", "needs_keys", "guards_metrics", "expected"),
    [
        ("/v1/models", True, False, True),
        ("/v1/models", False, False, False),
        ("/usage", True, False, True),
        ("/ping", True, False, False),
        ("/openapi.json", True, False, False),
        ("/metrics", True, False, False),
        ("/metrics", True, True, True),
        ("/dashboard", True, False, False),
        ("/dashboard/data", True, False, True),
    ],
)
def test_an_operation_requires_a_key_where_the_gateway_does(
    path: str, needs_keys: bool, guards_metrics: bool, expected: bool, new_rig: NewRig
) -> None:
    router = Router(expose_all=False)
    found = document(router, needs_keys=needs_keys, guards_metrics=guards_metrics)
    operation = found["paths"][path]["get"]

    assert bool(operation["security"]) == expected
    assert ("401" in operation["responses"]) == expected
    if needs_keys:
        rig = new_rig(metrics_auth_enabled=guards_metrics)
        outcome = rig.send_request(request("GET", path, key=None))
        assert (code_of_401(outcome) == 401) == expected


def code_of_401(outcome: Any) -> int:
    """The status of a local response; 0 while the engine has to respond."""
    return int(outcome.response.status) if outcome.responses else 0


def test_a_single_model_is_described_with_its_name_and_the_error_for_another() -> None:
    operation = document(Router(expose_all=False))["paths"]["/v1/models/{model}"]["get"]

    (name,) = [each for each in operation["parameters"] if each.get("in") == "path"]
    assert (name["name"], name["required"]) == ("model", True)
    assert operation["responses"]["404"]["$ref"] == "#/components/responses/Error404"
    assert operation["security"]


def test_errors_on_anthropics_paths_have_its_envelope() -> None:
    found = document(Router(expose_all=False))
    reference = found["paths"]["/v1/messages"]["post"]["responses"]["429"]["$ref"]

    assert reference == "#/components/responses/Anthropic429"
    assert "rate_limit_exceeded" in found["components"]["responses"]["Anthropic429"]["description"]


def test_it_is_served_without_a_key_and_without_the_engine(rig: Rig) -> None:
    response = rig.send_request(request("GET", "/openapi.json", key=None)).response
    found = json.loads(response.body)

    assert response["content-type"] == "application/json"
    assert found["openapi"].startswith("3.1")
    assert rig.dials == []
    for secret in (KEY, BACKEND_KEY, "alice"):
        assert secret.encode() not in response.body


def test_it_follows_the_settings(new_rig: NewRig) -> None:
    rig = new_rig(auth_enabled=False, dashboard=False)
    found = json.loads(rig.send_request(request("GET", "/openapi.json")).response.body)

    assert all(operation["security"] == [] for operation in operations(found).values())
    assert "/dashboard" not in found["paths"]
