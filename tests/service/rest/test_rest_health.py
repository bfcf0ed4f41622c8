"""Health, metrics, logs, and what no route answers."""

from __future__ import annotations

import pytest
from service.rest.process import RestService, error_of, wait_for


def test_live_ready_and_docs(rest: RestService) -> None:
    assert rest.client.get("/health/live").json() == {"status": "live"}
    ready = rest.client.get("/health/ready").json()
    assert ready["status"] == "ready" and ready["engine"] == "embedded" and ready["engine_version"]
    assert rest.client.head("/health/live").status_code == 200
    assert "swagger" in rest.client.get("/docs").text and rest.client.get("/openapi.json").json()["openapi"]


def test_ready_goes_red_with_the_engine_and_green_again(held: RestService) -> None:
    state = 'latent_encoder_engine_ready{engine="embedded"}'
    assert held.metric(state) == 1
    held.away()
    wait_for(lambda: not held.is_ready())
    assert error_of(held.client.get("/health/ready")) == (503, "ENGINE_UNAVAILABLE")
    assert error_of(held.client.get("/v1/vaes")) == (503, "ENGINE_UNAVAILABLE")
    assert held.client.get("/health/live").status_code == 200 and held.metric(state) == 0
    held.away(False)
    wait_for(held.is_ready)
    assert held.metric(state) == 1


def test_what_nobody_foresaw_is_answered_counted_and_readable_for_pages(held: RestService) -> None:
    counted = 'latent_encoder_http_requests_total{code="INTERNAL",method="GET",route="/v1/vaes",status="500"}'
    held.flag("odd")
    response = held.client.get("/v1/vaes", headers={"Origin": "https://studio.example"})
    assert error_of(response) == (500, "INTERNAL")
    assert response.headers["Access-Control-Allow-Origin"] == "https://studio.example"
    assert held.metric(counted) == 1
    wait_for(lambda: any(line["message"] == "A request failed" for line in held.log()))
    assert any(line.get("status") == 500 and line.get("code") == "INTERNAL" for line in held.log())


def test_metrics_count_what_was_done(rest: RestService) -> None:
    answers = 'latent_encoder_http_requests_total{{code="{}",method="{}",route="{}",status="{}"}}'.format
    names = {
        "ok": answers("success", "POST", "/v1/encode", 200),
        "missing": answers("IMAGE_NOT_FOUND", "POST", "/v1/encode", 404),
        "jobs": answers("success", "POST", "/v1/jobs", 202),
        "looks": answers("JOB_NOT_FOUND", "GET", "/v1/jobs/{job_id}", 404),
        "encodes": 'latent_encoder_encodes_total{code="success"}',
        "reused": "latent_encoder_reused_total",
        "seconds": "latent_encoder_encode_seconds_count",
        "queue": "latent_encoder_queue_seconds_count",
        "bytes": "latent_encoder_written_bytes_total",
    }
    before = {key: rest.metric(name) for key, name in names.items()}
    size = rest.encode(request_id="counted").json()["metadata"]["file_bytes"]
    rest.encode(request_id="counted")
    rest.encode(image_path="pictures/none.png")
    rest.submit(request_id="counted-job")
    size += rest.ended("counted-job")["response"]["metadata"]["file_bytes"]
    rest.client.get("/v1/jobs/none")
    grown = {key: rest.metric(name) - before[key] for key, name in names.items()}
    assert grown == {
        "ok": 2,
        "missing": 1,
        "jobs": 1,
        "looks": 1,
        "encodes": 3,
        "reused": 1,
        "seconds": 4,
        "queue": 4,
        "bytes": size,
    }
    assert rest.metric("process_resident_memory_bytes") > 0


def test_logs_carry_both_ids(rest: RestService) -> None:
    rest.encode(request_id="logged", correlation_id="order {7}")
    rest.submit(request_id="logged-job", correlation_id="order 8")
    rest.ended("logged-job")
    wait_for(lambda: any(line.get("request_id") == "logged" for line in rest.log()))
    (line,) = (line for line in rest.log() if line.get("request_id") == "logged")
    assert line["correlation_id"] == "order {7}" and line["code"] == "success" and line["status"] == 200
    messages = [line["message"] for line in rest.log() if line.get("request_id") == "logged-job"]
    assert messages[0] == "POST /v1/jobs" and "Job done" in messages


def test_misspelt_query_parameter_is_refused(rest: RestService) -> None:
    for path in ("/v1/latents/a?outputdir=more", "/v1/vaes?a=b", "/v1/jobs/a?x="):
        assert error_of(rest.client.get(path)) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/v1/nothing", 404), ("PUT", "/v1/encode", 405), ("GET", "/v1/encode", 405)],
)
def test_what_is_no_route_is_answered_in_the_same_form(rest: RestService, method: str, path: str, status: int) -> None:
    response = rest.client.request(method, path)
    assert error_of(response) == (status, "INVALID_REQUEST")
    assert ("Allow" in response.headers) == (status == 405)
