"""The socket that a door serves HTTP on, and the server behind it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uvicorn

    from .config import Settings

BACKLOG = 4096


class CannotListen(Exception):
    """Why REST_HOST and REST_PORT cannot be listened on, in words."""


@contextmanager
def listen(settings: Settings) -> Iterator[socket.socket]:
    """A socket on the address of the settings.

    Raises:
        CannotListen: the address is unknown, or taken.
    """
    host = settings.rest_host.strip("[]")
    try:
        found = socket.getaddrinfo(host, settings.rest_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, address = found[0][0], found[0][4]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CannotListen(f"{settings.rest_host}:{settings.rest_port} cannot be listened on: {reason}.") from error
    with listener:
        yield listener


def http_server(app: Any, **options: Any) -> uvicorn.Server:
    """A server of ours for an application: it has no websockets, and its log is ours.

    Args:
        options: further ones of uvicorn's ``Config``.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        **options,
    )
    return uvicorn.Server(config)


def url_of(listener: socket.socket) -> str:
    """The address that it is reached at."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
