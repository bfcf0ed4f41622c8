"""The OpenAPI document: checked in as it is, and true: a fuzzer finds no 500 and nothing undocumented."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from service.rest.process import HELD, ROOT, RestService, error_of

from latent_encoder.errors import CATALOGUE

TOKEN = "s3cret-token"
DOCUMENT = ROOT / "docs" / "openapi.json"
schema = schemathesis.openapi.from_path(DOCUMENT)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestService]:
    """A service that asks for a token."""
    here = tmp_path_factory.mktemp("guarded")
    cors = {"LATENT_ENCODER_CORS_ORIGINS": "https://studio.example"}
    service = RestService(here, script=HELD, LATENT_ENCODER_API_TOKEN=TOKEN, **cors)
    yield service.start()
    assert service.stop() == 0


def test_document_that_is_checked_in_is_the_service_s_own(guarded: RestService) -> None:
    """Mend it with: python -m latent_encoder.service.doors.rest.document > docs/openapi.json"""
    assert json.loads(DOCUMENT.read_text()) == guarded.client.get("/openapi.json").json()


def test_every_failure_is_documented_with_an_example_of_its_status(guarded: RestService) -> None:
    for path, operations in json.loads(DOCUMENT.read_text())["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    examples = response["content"]["application/json"]["examples"]
                    assert examples, path
                    for code, example in examples.items():
                        assert example["value"]["error_code"] == code
                        assert int(status) in (CATALOGUE[code].http_status, 408, 416), (path, code)


@schema.parametrize()
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_fuzzed_requests_find_no_500_and_nothing_undocumented(case: schemathesis.Case, guarded: RestService) -> None:
    body = case.body if isinstance(case.body, dict) else {}
    if type(body.get("megapixels")) in (int, float) and 0.02 < body["megapixels"] <= 16:
        body["megapixels"] = 0.02  # for the time it takes
    response = case.call(base_url=guarded.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
    assert response.status_code != 500
    excluded = [not_a_server_error]  # a deadline that has passed is 504
    if "image" in body:  # no schema can say what a picture is, and a form's fields are all text
        excluded += [positive_data_acceptance, negative_data_rejection]
    elif "request_id" in body and "idempotency-key" in case.headers:
        excluded.append(positive_data_acceptance)  # nor that the two must be alike
    case.validate_response(response, excluded_checks=excluded)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"]
)
def test_v1_needs_the_token(guarded: RestService, header: str | None) -> None:
    headers = [] if header is None else [(b"authorization", header.encode())]
    with httpx.Client(base_url=guarded.url) as stranger:
        for method, path in (
            ("POST", "/v1/encode"),
            ("GET", "/v1/jobs/a"),
            ("GET", "/v1/latents/a"),
            ("GET", "/v1/vaes"),
        ):
            response = stranger.request(method, path, headers=headers)
            assert error_of(response) == (401, "UNAUTHORIZED") and response.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/health/live", "/health/ready", "/metrics", "/docs"):
            assert stranger.get(path, headers=headers).status_code == 200


def test_cors_is_for_the_pages_that_are_named(guarded: RestService) -> None:
    def preflight(origin: str) -> httpx.Response:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return httpx.options(f"{guarded.url}/v1/encode", headers=headers)

    assert preflight("https://studio.example").headers["Access-Control-Allow-Origin"] == "https://studio.example"
    assert "Access-Control-Allow-Origin" not in preflight("https://evil.example").headers
