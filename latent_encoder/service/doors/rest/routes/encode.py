"""``POST /v1/encode``: the answer comes when the picture is encoded."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from latent_encoder.models import EncodeResponse
from latent_encoder.provenance import REQUEST_ID
from latent_encoder.service.workers import ENCODE

from ..bodies import read_encode_request
from ..document import ENCODE_BODY, ENCODE_CODES, error_answers
from ..failures import CLIENT_GONE, answer
from ..guard import only_query
from ..service import Service
from ..waiting import Waiting

IdempotencyKey = Annotated[
    str | None,
    Header(pattern=REQUEST_ID.pattern, description="Stands for `request_id`: a repeated one is encoded once."),
]

router = APIRouter(dependencies=[only_query()])


@router.post(
    "/encode",
    summary="Encode a picture and wait for the answer",
    response_model=EncodeResponse,
    responses=error_answers(*ENCODE_CODES, slow_body=True),
    openapi_extra=ENCODE_BODY,
)
async def encode(http: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Encodes the picture that `image_path` names, or that is uploaded as the form's file `image`.

    A repeated `request_id` is answered from its file. A caller who goes away cancels the request.
    """
    service: Service = http.app.state.service
    service.workers.check_room(ENCODE)
    incoming = await read_encode_request(http, service, idempotency_key)
    response = await Waiting(service, incoming).response(http)
    if response is None:
        http.state.code = "INTERRUPTED"
        return Response(status_code=CLIENT_GONE)
    return answer(http, response)
