"""Who may use ``/v1``: callers with the token; without one, this machine's own programs and pages."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.hosts import is_loopback

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

_bearer = HTTPBearer(auto_error=False, description="Needed where the service was started with an API token.")


async def check_caller(
    http: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Raise UNAUTHORIZED for a caller who may not come in; a dependency of every route under ``/v1``."""
    settings: Settings = http.app.state.service.settings
    if settings.api_token:
        check_token(credentials.credentials if credentials else None, settings.api_token.get_secret_value())
    elif not settings.no_auth:
        check_local(http, settings)


def only_query(*names: str) -> Any:
    """A dependency that refuses query parameters of other names, so that a misspelt one is not passed over."""

    async def check(http: Request) -> None:
        unknown = sorted(set(http.query_params) - set(names))
        if unknown:
            allowed = f"This route takes {', '.join(names)}." if names else "This route takes none."
            raise LatentEncoderError("INVALID_REQUEST", f"Unknown query parameters: {', '.join(unknown)}.", allowed)

    return Depends(check)


def check_token(given: str | None, token: str) -> None:
    """Compare in a time that does not depend on where the two differ.

    Raises:
        LatentEncoderError: UNAUTHORIZED.
    """
    if given is None:
        raise LatentEncoderError("UNAUTHORIZED", "The request has no bearer token.")
    digests = (hashlib.sha256(text.encode()).digest() for text in (given, token))
    if not hmac.compare_digest(*digests):
        raise LatentEncoderError("UNAUTHORIZED", "The request's bearer token is not the right one.")


def check_local(http: Request, settings: Settings) -> None:
    """Refuse what a page of another site makes a browser on this machine send, by its Origin or by rebinding a name.

    Raises:
        LatentEncoderError: UNAUTHORIZED.
    """
    host = http.headers.get("host", "")
    name = _hostname(host)
    if not (is_loopback(name) or name == settings.rest_host):
        raise LatentEncoderError(
            "UNAUTHORIZED",
            "Without a token the service answers to this machine's own addresses only, and was called by another name.",
            "Call it by 127.0.0.1 or localhost, or start it with LATENT_ENCODER_API_TOKEN or --no-auth.",
        )
    origin = http.headers.get("origin")
    if origin and not (_is_of(origin, host) or {origin, "*"} & set(settings.cors_origins)):
        raise LatentEncoderError(
            "UNAUTHORIZED",
            "A web page of another site sent this request.",
            "Name the page's origin in LATENT_ENCODER_CORS_ORIGINS if it may.",
        )


def _hostname(host: str) -> str:
    """The host's name without its port; nothing where it is no host."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_of(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False
