"""A connection to one ComfyUI server that has been looked at: it is ComfyUI, and it has the nodes."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from latent_encoder.errors import LatentEncoderError

from .answers import not_comfyui
from .client import ComfyUIClient
from .listener import Listener

OLDEST_VERSION = (0, 3, 64)
LOOK_SECONDS = 10.0
CALL_SECONDS = 30.0
OUR_NODES = ("EncodeToLatentFile", "SaveLatentToDisk", "OptimizeVAEForEncoding")
# What the built-in workflow fills in; a pack of another version may lack some of it.
OUR_INPUTS = {
    "EncodeToLatentFile": frozenset(
        (
            *("image", "vae", "upscale_method", "megapixels", "resolution_steps"),
            *("filename_prefix", "file_format", "if_exists", "folder", "preview"),
        )
    ),
    "SaveLatentToDisk": frozenset(("samples", "filename_prefix", "file_format", "if_exists", "folder", "preview")),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerFacts:
    """What a look at a server tells.

    Attributes:
        version: ComfyUI's version; None for one that does not say it.
        takes_resolution_steps: whether its ImageScaleToTotalPixels has that input.
    """

    version: str | None
    takes_resolution_steps: bool


class Connection:
    """A client and a listener for one server. Closed once it is retired and nobody uses it any more."""

    def __init__(self, client: ComfyUIClient, node_classes: Iterable[str]) -> None:
        self.client = client
        self._node_classes = tuple(node_classes)
        self.look()
        self.listener = Listener(client)
        self._users = 0
        self._retired = False
        self._lock = threading.Lock()

    @classmethod
    def open(cls, url: str, *, token: str | None = None, node_classes: Iterable[str] = OUR_NODES[:1]) -> Connection:
        """Look at the server and connect to it.

        Raises:
            LatentEncoderError: see ``look_at``.
        """
        client = ComfyUIClient(url, CALL_SECONDS, token=token)
        try:
            return cls(client, node_classes)
        except BaseException:
            client.close()
            raise

    def look(self) -> None:
        """Look at the server once more: it may have been restarted, as another one.

        Raises:
            LatentEncoderError: see ``look_at``.
        """
        self.facts = look_at(self.client, self._node_classes)

    def enter(self) -> None:
        """One more uses it."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """One less uses it."""
        with self._lock:
            self._users -= 1
        self._close_if_unused()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """In this block it is not closed."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def retire(self) -> None:
        """Nobody new will use it."""
        self._retired = True
        self.listener.close()
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        with self._lock:
            unused = self._retired and self._users == 0
        if unused:
            self.client.close()


def look_at(client: ComfyUIClient, node_classes: Iterable[str], timeout: float = LOOK_SECONDS) -> ServerFacts:
    """See whether a server is a ComfyUI that has these nodes.

    Raises:
        LatentEncoderError: ENGINE_UNAVAILABLE where it cannot be reached, wants another login, or is no ComfyUI;
            TIMEOUT where it does not answer; NODES_MISSING where it is too old, or has not all of the nodes, or has
            ours in another version.
    """
    system = client.system_stats(timeout=timeout).get("system")
    if not isinstance(system, dict):
        raise not_comfyui(client.address, "it tells no system in its /system_stats.")
    version = system.get("comfyui_version")
    version = version if isinstance(version, str) else None
    missing = []
    for name in sorted(node_classes):
        inputs = _inputs(client, name, timeout)
        if inputs is None:
            missing.append(name)
        elif not OUR_INPUTS.get(name, frozenset()) <= inputs:
            lacking = ", ".join(sorted(OUR_INPUTS[name] - inputs))
            raise LatentEncoderError(
                "NODES_MISSING",
                f"The Latent Encoder nodes of ComfyUI at {client.url} are of another version: {name} has no {lacking}.",
                "Update the Latent Encoder nodes there and restart ComfyUI.",
            )
    if missing:
        raise _nodes_missing(client.url, version, missing)
    return ServerFacts(version, "resolution_steps" in (_inputs(client, "ImageScaleToTotalPixels", timeout) or ()))


def vae_names(client: ComfyUIClient) -> list[str]:
    """The names that the server's VAELoader offers."""
    info = client.object_info("VAELoader", timeout=LOOK_SECONDS)
    try:
        choice = info["VAELoader"]["input"]["required"]["vae_name"]
        # The second shape is that of nodes in ComfyUI's newer schema.
        names = choice[0] if isinstance(choice[0], list) else choice[1]["options"]
    except (KeyError, IndexError, TypeError) as error:
        raise LatentEncoderError("NODES_MISSING", f"ComfyUI at {client.url} has no VAELoader as we know it.") from error
    return [str(name) for name in names]


def _inputs(client: ComfyUIClient, name: str, timeout: float) -> set[str] | None:
    """The inputs of a node; None where the server does not have it."""
    definition: dict[str, Any] | None = client.object_info(name, timeout=timeout).get(name)
    if not definition:
        return None
    try:
        groups = definition.get("input") or {}
        return {key for group in ("required", "optional") for key in groups.get(group) or {}}
    except (AttributeError, TypeError) as error:
        raise not_comfyui(client.address, f"it does not describe the node {name} as ComfyUI does.") from error


def _nodes_missing(url: str, version: str | None, missing: list[str]) -> LatentEncoderError:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version or "")[:3])
    if numbers < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        return LatentEncoderError(
            "NODES_MISSING",
            f"ComfyUI at {url} is {version or 'too old to say its version'}; "
            f"the Latent Encoder nodes need {oldest} or newer.",
            "Update ComfyUI, then install the Latent Encoder nodes.",
        )
    if set(missing) & set(OUR_NODES):
        return LatentEncoderError(
            "NODES_MISSING",
            f"ComfyUI {version} at {url} has no {' and no '.join(missing)}: the Latent Encoder nodes are not installed "
            "there, or could not be imported.",
        )
    return LatentEncoderError(
        "NODES_MISSING",
        f"ComfyUI {version} at {url} lacks nodes of the workflow: {', '.join(missing)}.",
        "Install the node packs that they come from, or use another workflow.",
    )
