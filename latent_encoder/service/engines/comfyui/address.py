"""Where a ComfyUI server is, and what it is told to let us in. Credentials stay apart from the address that we show."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.hosts import is_loopback


@dataclass(frozen=True)
class Address:
    """A server's address.

    Attributes:
        url: without credentials and without a slash at its end; may have a path.
        authorization: the ``Authorization`` header's value, where there is one.
        credentials: what ``authorization`` was made from.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)
    credentials: Literal["password", "token"] | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": self.authorization} if self.authorization else {}

    @property
    def websocket_url(self) -> str:
        """The address of ``/ws``, without its query."""
        return "ws" + self.url.removeprefix("http") + "/ws"

    @property
    def is_loopback(self) -> bool:
        return is_loopback(urlsplit(self.url).hostname or "")


def parse_address(url: str, token: str | None = None) -> Address:
    """Take a URL apart: ``https://user:password@host/prefix``.

    Args:
        token: a bearer token; a user name in the URL goes before it, because it was meant for this one server.

    Raises:
        LatentEncoderError: INVALID_REQUEST for what is no address of HTTP.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and not (parts.query or parts.fragment)
    except ValueError:  # a port that is no number, brackets that do not close
        usable = False
    if not usable:
        raise LatentEncoderError(
            "INVALID_REQUEST",
            "COMFYUI_URL holds something that is no address of HTTP.",  # not shown: it may hold a password
            "Write it as http://127.0.0.1:8188, or https://user:password@host/prefix.",
        )
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return Address(shown, f"Basic {base64.b64encode(pair.encode()).decode()}", "password")
    if token:
        return Address(shown, f"Bearer {token}", "token")
    return Address(shown)
