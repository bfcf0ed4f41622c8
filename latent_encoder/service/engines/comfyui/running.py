"""One prompt on one server, from its submission to its entry in the history."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.base import Call

from .client import FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS, QUEUE_CHECK_SECONDS
from .connection import Connection
from .listener import PromptNews

WAIT_SECONDS = 0.1  # how soon a caller who goes away is noticed
SAFETY_POLL_SECONDS = 2.0  # a message may get lost
POLL_TIMEOUT_SECONDS = 2.0  # a caller who goes away is noticed after it; only HANG_SECONDS of silence count
SUBMIT_SECONDS = 30.0
HANG_SECONDS = 60.0
"""A server that has not answered for so long is taken for hung. Loading a large model can silence it for a while."""

FAILURES = 3
FAILURE_PAUSE_SECONDS = 0.3


class ServerLost(Exception):
    """The server went away, forgot the prompt, or hangs; another one may do the work.

    Attributes:
        reason: the same for whoever asked.
    """

    def __init__(self, reason: LatentEncoderError) -> None:
        self.reason = reason
        super().__init__(reason.message)


def seconds_for(call: Call, longest: float) -> float:
    """A time limit for one HTTP call: no longer than the caller waits."""
    remaining = call.remaining()
    return longest if remaining is None else max(0.05, min(longest, remaining))


def run_prompt(
    connection: Connection,
    prompt: Mapping[str, Any],
    prompt_id: str,
    *,
    extra_data: Mapping[str, Any],
    nodes: int,
    call: Call,
    on_turn: Callable[[float], None],
) -> dict[str, Any]:
    """Send the prompt and wait for its end; the entry of ``/history``.

    Args:
        nodes: how many nodes will run, for the progress.
        on_turn: told the progress, some ten times a second; what it raises ends the wait.

    Raises:
        PromptRejected: some node or input is wrong.
        ServerLost: see there. The prompt may still run.
        LatentEncoderError: INTERRUPTED or TIMEOUT of the call, the prompt then still runs; INTERRUPTED where somebody
            took it from ComfyUI's queue.
    """
    with connection.listener.watch(prompt_id, nodes) as news:
        known_since = connection.listener.connections if connection.listener.connected else None
        with_caller(
            call,
            lambda: connection.client.submit(
                prompt, extra_data=extra_data, prompt_id=prompt_id, timeout=seconds_for(call, SUBMIT_SECONDS)
            ),
        )
        return _Wait(connection, prompt_id, news, call, known_since).for_the_end(on_turn)


def with_caller(call: Call, request: Callable[[], Any]) -> Any:
    """Make one request of a server for a caller. It goes on in the background where the caller goes away meanwhile.

    Raises:
        ServerLost: it failed as a server does that is not there.
        LatentEncoderError: the caller's INTERRUPTED or TIMEOUT; what else the request raises.
    """
    answer: Future[Any] = Future()
    # A daemon: a server that hangs must not keep the process from its end.
    threading.Thread(target=_answer, args=(answer, request), name="latent-encoder-request", daemon=True).start()
    while not wait([answer], WAIT_SECONDS).done:
        call.check()
    try:
        return answer.result()
    except LatentEncoderError as error:
        call.check()
        if error.code in ("ENGINE_UNAVAILABLE", "TIMEOUT"):
            raise ServerLost(error) from error
        raise


def _answer(answer: Future[Any], request: Callable[[], Any]) -> None:
    try:
        answer.set_result(request())
    except BaseException as error:
        answer.set_exception(error)


class _Wait:
    """The state of waiting for one prompt."""

    def __init__(
        self, connection: Connection, prompt_id: str, news: PromptNews, call: Call, known_since: int | None
    ) -> None:
        self._client, self._listener = connection.client, connection.listener
        self._prompt_id, self._news, self._call = prompt_id, news, call
        self._known_since = known_since
        self._pause = FIRST_POLL_SECONDS
        self._next_queue_check = time.monotonic() + QUEUE_CHECK_SECONDS
        self._failures = 0
        self._last_answer = time.monotonic()
        self._plan(time.monotonic())

    def for_the_end(self, on_turn: Callable[[float], None]) -> dict[str, Any]:
        while True:
            now = time.monotonic()
            if self._news.ended or now >= self._next_poll:
                entry = self._ask()
                if entry is not None:
                    return entry
                self._plan(time.monotonic())
            self._call.check()
            on_turn(self._news.progress)
            self._news.wait(min(WAIT_SECONDS, max(0.0, self._next_poll - time.monotonic())))

    def _plan(self, now: float) -> None:
        """When to ask the history next."""
        if self._failures:
            self._next_poll = now + FAILURE_PAUSE_SECONDS
        elif self._listener.connected and not self._news.ended:
            self._next_poll = now + SAFETY_POLL_SECONDS
        else:
            self._next_poll = now + self._pause
            self._pause = min(self._pause * 1.5, LONGEST_POLL_SECONDS)

    def _ask(self) -> dict[str, Any] | None:
        timeout = seconds_for(self._call, POLL_TIMEOUT_SECONDS)
        try:
            entry = self._client.history(self._prompt_id, timeout=timeout)
            if entry is None and time.monotonic() >= self._next_queue_check:
                self._check_that_it_is_known(timeout)
        except LatentEncoderError as error:
            self._note_failure(error)
            return None
        self._failures, self._last_answer = 0, time.monotonic()
        return entry

    def _check_that_it_is_known(self, timeout: float) -> None:
        self._next_queue_check = time.monotonic() + QUEUE_CHECK_SECONDS
        if self._client.knows(self._prompt_id, timeout=timeout):
            return
        if self._listener.connected and self._listener.connections == self._known_since:
            # It has been there all the time, so it was not restarted.
            raise LatentEncoderError("INTERRUPTED", "Somebody took the prompt from ComfyUI's queue.")
        raise ServerLost(LatentEncoderError("ENGINE_UNAVAILABLE", self._client.forgotten(), "Send the request again."))

    def _note_failure(self, error: LatentEncoderError) -> None:
        self._call.check()
        if error.code not in ("ENGINE_UNAVAILABLE", "TIMEOUT"):
            raise error
        if error.code == "TIMEOUT":  # busy or hung; time tells
            if time.monotonic() - self._last_answer > HANG_SECONDS:
                raise ServerLost(error) from error
        else:
            self._failures += 1
            if self._failures >= FAILURES:
                raise ServerLost(error) from error
