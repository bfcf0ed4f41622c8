"""A client for ComfyUI's public HTTP API: prompts, files, node definitions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from ipaddress import ip_address
from types import TracebackType
from typing import Any

import httpx

from latent_encoder.errors import LatentEncoderError

FIRST_POLL_SECONDS = 0.02
LONGEST_POLL_SECONDS = 0.25
QUEUE_CHECK_SECONDS = 5.0


class PromptRejected(Exception):
    """ComfyUI refused a prompt, or would run only a part of it.

    Attributes:
        error: ComfyUI's ``{"type", "message", "details", "extra_info"}``; empty where only nodes have errors.
        node_errors: by node id, ``{"errors": [{"type", "message", "details", "extra_info"}], "class_type", ...}``.
    """

    def __init__(self, error: dict[str, Any], node_errors: dict[str, Any]) -> None:
        self.error = error
        self.node_errors = node_errors
        super().__init__("\n".join(self._lines()) or "ComfyUI refused the prompt")

    def _lines(self) -> list[str]:
        lines = [_sentence(self.error)] if self.error else []
        for node_id, entry in self.node_errors.items():
            name = f"{entry.get('class_type', 'node')} ({node_id})"
            lines += [f"{name}: {_sentence(error)}" for error in entry.get("errors", [])]
        return lines


class ComfyUIClient:
    """Talks to one ComfyUI server. May be shared by threads; close it, or use it as a context manager.

    Every method raises LatentEncoderError: ENGINE_UNAVAILABLE where the server cannot be reached, TIMEOUT where it does
    not answer; and httpx.HTTPStatusError for an answer that none of its callers can expect.

    Args:
        url: the server's address, such as ``http://127.0.0.1:8188``; may have a path.
        timeout: seconds for one HTTP call, not for a prompt.
    """

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.client_id = str(uuid.uuid4())
        # A proxy of the environment is for the outside, not for this machine.
        self._http = httpx.Client(base_url=self.url, timeout=timeout, trust_env=not _is_loopback(self.url))

    def submit(self, prompt: Mapping[str, Any], *, extra_data: Mapping[str, Any] | None = None) -> str:
        """Queue a prompt in API format; returns its id.

        Raises:
            PromptRejected: some node or input is wrong. Nothing of the prompt is left to run.
        """
        body = {"prompt": prompt, "client_id": self.client_id, "prompt_id": str(uuid.uuid4())}
        if extra_data is not None:
            body["extra_data"] = extra_data
        # Not httpx's json=: that refuses NaN, which is ours to send and the node's to refuse.
        content = json.dumps(body).encode()
        response = self._call("POST", "/prompt", content=content, headers={"Content-Type": "application/json"})
        answer = _json_object(response)
        if response.status_code == httpx.codes.BAD_REQUEST and answer:
            error = answer.get("error") or {}
            error = error if isinstance(error, dict) else {"message": str(error)}
            raise PromptRejected(error, answer.get("node_errors") or {})
        response.raise_for_status()
        prompt_id = str(answer["prompt_id"])
        if answer.get("node_errors"):
            # Some of its outputs are valid: ComfyUI has queued those and dropped the others.
            self.cancel(prompt_id)
            raise PromptRejected({}, answer["node_errors"])
        return prompt_id

    def wait(self, prompt_id: str, timeout: float = 600.0) -> dict[str, Any]:
        """The prompt's entry of ``/history`` (``outputs``, ``status``, ``meta``), once it has finished or failed.

        Args:
            timeout: seconds from now, its time in the queue included. The prompt goes on after that: see ``cancel``.

        Raises:
            LatentEncoderError: TIMEOUT; ENGINE_UNAVAILABLE, also where the server has forgotten the prompt (it was
                restarted, or somebody deleted it from the queue).
        """
        deadline = time.monotonic() + timeout
        pause = FIRST_POLL_SECONDS
        next_queue_check = time.monotonic() + QUEUE_CHECK_SECONDS
        while True:
            entry = self.history(prompt_id)
            if entry is not None:
                return entry
            now = time.monotonic()
            if now >= deadline:
                raise LatentEncoderError("TIMEOUT", f"ComfyUI did not finish the prompt within {timeout:g} s.")
            if now >= next_queue_check:
                self._check_that_it_is_known(prompt_id)
                next_queue_check = now + QUEUE_CHECK_SECONDS
            time.sleep(min(pause, deadline - now))
            pause = min(pause * 1.5, LONGEST_POLL_SECONDS)

    def run(
        self, prompt: Mapping[str, Any], *, extra_data: Mapping[str, Any] | None = None, timeout: float = 600.0
    ) -> dict[str, Any]:
        """``submit``, then ``wait``."""
        return self.wait(self.submit(prompt, extra_data=extra_data), timeout)

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The prompt's entry of ``/history``; None while it has not ended, or is unknown."""
        entry = self._get(f"/history/{prompt_id}").json().get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def queued(self) -> set[str]:
        """The ids of the prompts that run or wait."""
        queue = self._get("/queue").json()
        return {str(item[1]) for key in ("queue_running", "queue_pending") for item in queue[key]}

    def cancel(self, prompt_id: str) -> None:
        """Take the prompt from the queue, or interrupt it if it runs."""
        self._post("/queue", {"delete": [prompt_id]})
        self.interrupt(prompt_id)

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Interrupt this prompt if it runs; without an id, whatever runs."""
        self._post("/interrupt", {} if prompt_id is None else {"prompt_id": prompt_id})

    def view(self, item: Mapping[str, str]) -> bytes:
        """The bytes of a file that a node has named as ``{"filename", "subfolder", "type"}``."""
        names = {key: item[key] for key in ("filename", "subfolder", "type") if key in item}
        return self._get("/view", params=names).content

    def upload_image(
        self, data: bytes, filename: str, *, subfolder: str = "", type: str = "input", overwrite: bool = True
    ) -> dict[str, Any]:
        """Put a file into the server's folder ``type`` (input, temp, output); returns its name, subfolder and type."""
        fields = {"subfolder": subfolder, "type": type, "overwrite": "true" if overwrite else "false"}
        response = self._call("POST", "/upload/image", files={"image": (filename, data)}, data=fields)
        response.raise_for_status()
        return _json_object(response)

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """The definitions of all nodes by id, or of one; empty where the server does not have that node."""
        return _json_object(self._get("/object_info" if node is None else f"/object_info/{node}"))

    def system_stats(self) -> dict[str, Any]:
        """ComfyUI's version, command line, devices and memory."""
        return _json_object(self._get("/system_stats"))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> ComfyUIClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_that_it_is_known(self, prompt_id: str) -> None:
        # In this order: a prompt goes from the queue to the history, never back.
        if prompt_id not in self.queued() and self.history(prompt_id) is None:
            raise LatentEncoderError(
                "ENGINE_UNAVAILABLE",
                f"ComfyUI at {self.url} no longer knows the prompt: it was restarted, or its queue was cleared.",
                "Send the request again.",
            )

    def _get(self, path: str, *, params: Mapping[str, str] | None = None) -> httpx.Response:
        response = self._call("GET", path, params=params)
        response.raise_for_status()
        return response

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        self._call("POST", path, json=body).raise_for_status()

    def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **arguments)
        except httpx.ConnectTimeout as error:
            raise LatentEncoderError("ENGINE_UNAVAILABLE", f"ComfyUI at {self.url} cannot be reached.") from error
        except httpx.TimeoutException as error:
            raise LatentEncoderError("TIMEOUT", f"ComfyUI at {self.url} does not answer.") from error
        except httpx.TransportError as error:
            reason = f"ComfyUI at {self.url} cannot be reached ({error})."
            raise LatentEncoderError("ENGINE_UNAVAILABLE", reason) from error


def _sentence(error: Mapping[str, Any]) -> str:
    message, details = str(error.get("message", "")), str(error.get("details", ""))
    return f"{message} ({details})" if message and details else message or details


def _json_object(response: httpx.Response) -> dict[str, Any]:
    """The answer's JSON object; empty where it is something else, as a proxy's error page is."""
    try:
        answer = response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
