"""A client for ComfyUI's public HTTP API: prompts, files, node definitions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import httpx

from latent_encoder.errors import LatentEncoderError

from .address import Address, parse_address
from .answers import expect_success, json_object, not_comfyui

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

    Every method raises LatentEncoderError: ENGINE_UNAVAILABLE where the server cannot be reached, wants another login
    or is no ComfyUI, TIMEOUT where it does not answer. A method's ``timeout`` is in seconds and stands for the
    client's.

    Args:
        url: the server's address, such as ``http://127.0.0.1:8188``; may have a path, and ``user:password@``.
        timeout: seconds for one HTTP call, not for a prompt.
        token: sent as ``Authorization: Bearer``, where the URL has no user.

    Raises:
        LatentEncoderError: INVALID_REQUEST for no address of HTTP.
    """

    def __init__(self, url: str, timeout: float = 60.0, *, token: str | None = None) -> None:
        self.address: Address = parse_address(url, token)
        self.url = self.address.url
        self.client_id = str(uuid.uuid4())
        self.timeout = timeout
        self._http = httpx.Client(
            base_url=self.url,
            headers=self.address.headers,
            timeout=timeout,
            trust_env=not self.address.is_loopback,  # a proxy of the environment is for the outside
        )

    def submit(
        self,
        prompt: Mapping[str, Any],
        *,
        extra_data: Mapping[str, Any] | None = None,
        prompt_id: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Queue a prompt in API format; returns its id.

        Args:
            prompt_id: a UUID of the caller's, for whom it must be known even if the answer is lost.

        Raises:
            PromptRejected: some node or input is wrong. Nothing of the prompt is left to run.
        """
        prompt_id = prompt_id or str(uuid.uuid4())
        body = {"prompt": prompt, "client_id": self.client_id, "prompt_id": prompt_id}
        if extra_data is not None:
            body["extra_data"] = extra_data
        # Not httpx's json=: that refuses NaN, which is ours to send and the node's to refuse.
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        response = self._call("POST", "/prompt", timeout, content=content, headers=headers)
        if response.status_code == httpx.codes.BAD_REQUEST:
            refusal = json_object(response, self.address)
            error = refusal.get("error") or {}
            error = error if isinstance(error, dict) else {"message": str(error)}
            raise PromptRejected(error, refusal.get("node_errors") or {})
        answer = json_object(expect_success(response, self.address), self.address)
        prompt_id = str(answer.get("prompt_id", prompt_id))
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
                if not self.knows(prompt_id):
                    raise LatentEncoderError("ENGINE_UNAVAILABLE", self.forgotten(), "Send the request again.")
                next_queue_check = now + QUEUE_CHECK_SECONDS
            time.sleep(min(pause, deadline - now))
            pause = min(pause * 1.5, LONGEST_POLL_SECONDS)

    def run(
        self, prompt: Mapping[str, Any], *, extra_data: Mapping[str, Any] | None = None, timeout: float = 600.0
    ) -> dict[str, Any]:
        """``submit``, then ``wait``."""
        return self.wait(self.submit(prompt, extra_data=extra_data), timeout)

    def history(self, prompt_id: str, *, timeout: float | None = None) -> dict[str, Any] | None:
        """The prompt's entry of ``/history``; None while it has not ended, or is unknown."""
        entry = self._get(f"/history/{prompt_id}", timeout).get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def queued(self, *, timeout: float | None = None) -> set[str]:
        """The ids of the prompts that run or wait."""
        queue = self._get("/queue", timeout)
        try:
            return {str(item[1]) for key in ("queue_running", "queue_pending") for item in queue[key]}
        except (LookupError, TypeError) as error:
            raise not_comfyui(self.address, "its /queue names no prompts.") from error

    def queue_length(self, *, timeout: float | None = None) -> int:
        """How many prompts run or wait."""
        answer = self._get("/prompt", timeout)
        try:
            return int(answer["exec_info"]["queue_remaining"])
        except (LookupError, TypeError, ValueError) as error:
            raise not_comfyui(self.address, "its /prompt tells no length of its queue.") from error

    def knows(self, prompt_id: str, *, timeout: float | None = None) -> bool:
        """Whether the prompt runs, waits or has ended."""
        # In this order: a prompt goes from the queue to the history, never back.
        return prompt_id in self.queued(timeout=timeout) or self.history(prompt_id, timeout=timeout) is not None

    def forgotten(self) -> str:
        """A sentence for a prompt that the server no longer knows."""
        return f"ComfyUI at {self.url} no longer knows the prompt: it was restarted, or its queue was cleared."

    def cancel(self, prompt_id: str, *, timeout: float | None = None) -> None:
        """Take the prompt from the queue, or interrupt it if it runs."""
        self._post("/queue", {"delete": [prompt_id]}, timeout)
        self.interrupt(prompt_id, timeout=timeout)

    def interrupt(self, prompt_id: str | None = None, *, timeout: float | None = None) -> None:
        """Interrupt this prompt if it runs; without an id, whatever runs."""
        self._post("/interrupt", {} if prompt_id is None else {"prompt_id": prompt_id}, timeout)

    def view(self, item: Mapping[str, str], *, timeout: float | None = None) -> bytes:
        """The bytes of a file that a node has named as ``{"filename", "subfolder", "type"}``.

        Raises:
            LatentEncoderError: LATENT_NOT_FOUND where it is not there.
        """
        names = {key: item[key] for key in ("filename", "subfolder", "type") if key in item}
        response = self._call("GET", "/view", timeout, params=names)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise LatentEncoderError(
                "LATENT_NOT_FOUND", f"ComfyUI at {self.url} has no file '{item['filename']}' any more."
            )
        return expect_success(response, self.address).content

    def upload_image(
        self,
        data: bytes,
        filename: str,
        *,
        subfolder: str = "",
        type: str = "input",
        overwrite: bool = True,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Put a file into the server's folder ``type`` (input, temp, output); returns its name, subfolder and type.

        Raises:
            LatentEncoderError: IMAGE_TOO_LARGE where the server does not take so many bytes.
        """
        fields = {"subfolder": subfolder, "type": type, "overwrite": "true" if overwrite else "false"}
        response = self._call("POST", "/upload/image", timeout, files={"image": (filename, data)}, data=fields)
        if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            raise LatentEncoderError(
                "IMAGE_TOO_LARGE",
                f"The server at {self.url} does not take a picture of {len(data):,} bytes.",
                "Make the file smaller, or allow more there: ComfyUI's --max-upload-size, or the proxy's own limit.",
            )
        return json_object(expect_success(response, self.address), self.address)

    def object_info(self, node: str | None = None, *, timeout: float | None = None) -> dict[str, Any]:
        """The definitions of all nodes by id, or of one; empty where the server does not have that node."""
        return self._get("/object_info" if node is None else f"/object_info/{node}", timeout)

    def system_stats(self, *, timeout: float | None = None) -> dict[str, Any]:
        """ComfyUI's version, command line, devices and memory."""
        return self._get("/system_stats", timeout)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> ComfyUIClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str, timeout: float | None) -> dict[str, Any]:
        return json_object(expect_success(self._call("GET", path, timeout), self.address), self.address)

    def _post(self, path: str, body: Mapping[str, Any], timeout: float | None) -> None:
        expect_success(self._call("POST", path, timeout, json=body), self.address)

    def _call(self, method: str, path: str, timeout: float | None, **arguments: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, timeout=self.timeout if timeout is None else timeout, **arguments)
        except httpx.ConnectTimeout as error:
            raise LatentEncoderError("ENGINE_UNAVAILABLE", f"ComfyUI at {self.url} cannot be reached.") from error
        except httpx.TimeoutException as error:
            raise LatentEncoderError("TIMEOUT", f"ComfyUI at {self.url} does not answer.") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = f"ComfyUI at {self.url} cannot be reached ({error})."
            raise LatentEncoderError("ENGINE_UNAVAILABLE", reason) from error
        except RuntimeError as error:
            if not self._http.is_closed:
                raise
            reason = f"The connection to ComfyUI at {self.url} is closed."
            raise LatentEncoderError("ENGINE_UNAVAILABLE", reason) from error


def _sentence(error: Mapping[str, Any]) -> str:
    message, details = str(error.get("message", "")), str(error.get("details", ""))
    return f"{message} ({details})" if message and details else message or details
