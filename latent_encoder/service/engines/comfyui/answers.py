"""What a server's answer means where it is not the one that ComfyUI gives."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx

from latent_encoder.errors import LatentEncoderError

from .address import Address

BAD_GATEWAYS = (502, 503, 504)
CHECK_URL = "Check COMFYUI_URL: its host, its port, and the path before ComfyUI's own where a proxy adds one."


def expect_success(response: httpx.Response, address: Address) -> httpx.Response:
    """The response where its status is 2xx.

    Raises:
        LatentEncoderError: ENGINE_UNAVAILABLE, saying what is the matter with the address or the login.
    """
    if response.is_success:
        return response
    message, hint = _explain(response, address)
    again = response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS
    raise LatentEncoderError("ENGINE_UNAVAILABLE", message, hint, retryable=again)


def json_object(response: httpx.Response, address: Address) -> dict[str, Any]:
    """The JSON object that a response holds.

    Raises:
        LatentEncoderError: ENGINE_UNAVAILABLE where it holds something else, as a proxy's login page does.
    """
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    kind = response.headers.get("content-type", "unknown").partition(";")[0]
    raise not_comfyui(address, f"{_path(response)} gives {kind}, not JSON.")


def not_comfyui(address: Address, reason: str) -> LatentEncoderError:
    """An error for an answer that ComfyUI would not give."""
    message = f"What answers at {address.url} is not ComfyUI: {reason}"
    return LatentEncoderError("ENGINE_UNAVAILABLE", message, CHECK_URL, retryable=False)


def _explain(response: httpx.Response, address: Address) -> tuple[str, str | None]:
    status = f"{response.status_code} {response.reason_phrase}".strip()
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return _explain_login(response, address, status)
    if response.status_code == httpx.codes.FORBIDDEN:
        return (
            f"The server at {address.url} forbids {_path(response)} ({status}).",
            "Check what the proxy before ComfyUI allows, and whether these credentials may use it.",
        )
    if response.is_redirect:
        target = urlsplit(response.headers.get("location", ""))
        where = f"{target.scheme}://{target.hostname}{target.path}" if target.hostname else target.path
        return (
            f"The server at {address.url} sends us on to '{where}' ({status}), and we do not follow.",
            "If that is ComfyUI's address, set COMFYUI_URL to it. A login page in a browser cannot be used.",
        )
    if response.status_code == httpx.codes.NOT_FOUND:
        return (
            f"What answers at {address.url} has no {_path(response)} ({status}): it is not ComfyUI.",
            CHECK_URL,
        )
    if response.status_code in BAD_GATEWAYS:
        return f"The proxy at {address.url} does not reach the ComfyUI behind it ({status}).", None
    return f"ComfyUI at {address.url} answered {_path(response)} with {status}.", "Look into ComfyUI's log."


def _explain_login(response: httpx.Response, address: Address, status: str) -> tuple[str, str]:
    wanted = response.headers.get("www-authenticate", "").partition(" ")[0].lower()
    if address.credentials == "password":
        message = "does not accept the user name and password"
    elif address.credentials == "token":
        message = "does not accept the bearer token"
    else:
        message = "asks for a login"
    kind = {"basic": " It wants a user name and a password.", "bearer": " It wants a bearer token."}.get(wanted, "")
    hints = {
        "basic": "Write them into COMFYUI_URL: https://user:password@host.",
        "bearer": "Set LATENT_ENCODER_COMFYUI_TOKEN to it.",
    }
    hint = hints.get(wanted, "Give it a user and password in COMFYUI_URL, or LATENT_ENCODER_COMFYUI_TOKEN.")
    return f"The server at {address.url} {message} ({status}).{kind}", hint


def _path(response: httpx.Response) -> str:
    return response.request.url.path
