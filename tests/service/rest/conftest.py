"""The service processes that several tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from service.rest.process import HELD, RestService, wait_for


@pytest.fixture(scope="session")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestService]:
    """A service with a small upload limit, which reads ``pictures`` and writes ``output`` and ``more``."""
    service = RestService(
        tmp_path_factory.mktemp("rest"),
        LATENT_ENCODER_INPUT_ROOTS="pictures",
        LATENT_ENCODER_OUTPUT_ROOTS="output,more",
        LATENT_ENCODER_MAX_UPLOAD_MB="1",
        LATENT_ENCODER_QUEUE_SIZE="64",
    )
    yield service.start()
    assert service.stop() == 0


@pytest.fixture(scope="session")
def held_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestService]:
    service = RestService(
        tmp_path_factory.mktemp("held"),
        script=HELD,
        LATENT_ENCODER_QUEUE_SIZE="2",
        LATENT_ENCODER_CORS_ORIGINS="https://studio.example",
    )
    yield service.start()
    assert service.stop() == 0


@pytest.fixture
def held(held_service: RestService) -> Iterator[RestService]:
    """A service whose engine can be held back, with three slots and room for two in each queue."""
    yield held_service
    for name in ("hold", "away", "odd"):
        held_service.flag(name, False)
    wait_for(held_service.is_ready)
