"""What must be so on this machine before the service starts: folders that can be written, a port that is free."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_properties import load_confluent_kafka

from .config import NAMES, Settings
from .engines.comfyui.checkout import is_comfyui
from .engines.comfyui.workflow_file import read_workflow
from .hosts import is_loopback
from .requests import parse_request


def check_start(settings: Settings, mode: str, refused: set[str]) -> list[str]:
    """What stands in the way, each a sentence. Makes no folder and leaves nothing behind.

    Args:
        mode: ``standalone``, ``rest`` or ``kafka``.
        refused: attributes that are known to be wrong, and are not looked at.
    """
    checks: dict[str, Callable[[Settings], Iterator[str]]] = {
        "output_dir": lambda settings: _check_folder(settings.output_dir),
        "state_dir": lambda settings: _check_folder(settings.state_dir),
        "comfyui_path": _check_comfyui,
        "workflow": _check_workflow,
    }
    if mode == "rest":
        checks |= {"rest_host": _check_guard, "rest_port": _check_port}
    if mode == "kafka":
        checks |= {"rest_port": _check_port, "kafka_config_file": _check_kafka, "kafka_dlq_topic": _check_topics}
    return [
        f"{NAMES[attribute]} {problem}"
        for attribute, check in checks.items()
        if attribute not in refused
        for problem in check(settings)
    ]


def check_request(fields: Mapping[str, Any], settings: Settings) -> list[str]:
    """What is wrong with the fields of a request that the command line gives, in a sentence."""
    try:
        parse_request({**fields, "image_path": "-"}, settings)
    except LatentEncoderError as error:
        return [error.message]
    return []


def _check_folder(folder: Path) -> Iterator[str]:
    """A folder that is there can be written; one that is not can be made."""
    try:
        place = _nearest(folder)
        if not place.is_dir():
            yield f"'{folder}' cannot be written: '{place}' is no folder."
            return
        with tempfile.TemporaryFile(dir=place, prefix=".latent-encoder-"):
            pass
    except OSError as error:
        yield f"'{folder}' cannot be written ({error.strerror})."


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there; raises OSError where that cannot be told."""
    for place in (folder, *folder.parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            place.lstat()
            return place
    return folder


def _check_comfyui(settings: Settings) -> Iterator[str]:
    if settings.comfyui_path and not is_comfyui(settings.comfyui_path):
        yield f"'{settings.comfyui_path}' holds no ComfyUI: name the folder with its main.py."


def _check_workflow(settings: Settings) -> Iterator[str]:
    if settings.workflow is None:
        if settings.map:
            yield f"is not set, and {NAMES['map']} is for a workflow of yours."
        return
    if settings.engine == "embedded":
        yield "is for ComfyUI; the engine 'embedded' runs no workflow."
        return
    try:
        read_workflow(settings.workflow, settings.map)
    except LatentEncoderError as error:
        yield f"cannot be used: {error.message} {error.hint}"


def _check_kafka(settings: Settings) -> Iterator[str]:
    try:
        load_confluent_kafka()
        from .kafka import client_config

        properties = client_config.consumer(settings, "check")
        if (
            str(properties.get("security.protocol", "")).lower().startswith("sasl")
            and "sasl.mechanism" not in properties
        ):
            yield f"or the environment must set {NAMES['kafka_sasl_mechanism']}: the brokers are to be logged in to."
    except LatentEncoderError as error:
        yield f"cannot be used: {error.message} {error.hint}"


def _check_topics(settings: Settings) -> Iterator[str]:
    names = (settings.kafka_request_topic, settings.kafka_response_topic, settings.kafka_dlq_topic)
    if len(set(names)) < len(names):
        yield f"and the topics of requests and answers must be three: {', '.join(names)}."


def _check_guard(settings: Settings) -> Iterator[str]:
    """Whoever reaches an open address could read and write files here."""
    if not (is_loopback(settings.rest_host) or settings.api_token or settings.no_auth):
        yield (
            f"'{settings.rest_host}' can be reached from other machines: set {NAMES['api_token']} to a token that"
            " callers must send, or say --no-auth."
        )


def _check_port(settings: Settings) -> Iterator[str]:
    host, port = settings.rest_host.strip("[]"), settings.rest_port
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in addresses[:1]:
            with socket.socket(family, kind, protocol) as listener:
                if sys.platform != "win32":  # there it would share the port
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield f"{port} on {settings.rest_host} cannot be listened on ({reason}); another port, or 0 for any, may do."
