"""One server that work can go to, and the thread that looks after it.

The thread connects to the server, asks it for a sign of life, cancels what nobody waits for any more, and brings the
server up again after growing pauses; a server of ours it also starts, and ends when it hangs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from latent_encoder.errors import LatentEncoderError

from .address import parse_address
from .connection import Connection
from .running import HANG_SECONDS
from .supervisor import Supervisor

TICK_SECONDS = 0.5
PROBE_SECONDS = 5.0
PROBE_TIMEOUT_SECONDS = 5.0
SILENT_PROBES = 2  # a server that is only busy is not left out
FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 30.0
CANCEL_SECONDS = 5.0
STUCK_SECONDS = 30.0
"""How long after its interruption a prompt may still run before a server of ours is started anew."""

logger = logging.getLogger(__name__)

Connect = Callable[[str], Connection]


@dataclass(frozen=True)
class Abandoned:
    """What nobody waits for any more.

    Attributes:
        prompt_id: None where it had not become a prompt yet.
        overdue: whether it took too long.
    """

    connection: Connection
    prompt_id: str | None
    overdue: bool


class Member:
    """One server.

    Args:
        url: None for one that is ours to run.
        supervisor: of such a one.
        connect: opens a connection to a URL.
        changed: guards ``connection``, ``reason`` and the counts, and is notified of each change.

    Attributes:
        connection: None while it is down.
        reason: why it is down; None while it is up, and before the first attempt.
        failures: how many attempts to bring it up have failed.
        active: how many encodes of ours are there.
        served: how many have been.
    """

    def __init__(
        self, url: str | None, supervisor: Supervisor | None, connect: Connect, changed: threading.Condition
    ) -> None:
        self.connection: Connection | None = None
        self.reason: LatentEncoderError | None = None
        self.failures = self.active = self.served = 0
        self.supervisor = supervisor
        self._url, self._connect, self._changed = url, connect, changed
        self._abandoned: deque[Abandoned] = deque()
        self._stuck: dict[str, float] = {}  # prompt id to the time by which it must have ended
        self._silent_since: float | None = None
        self._wake = threading.Event()
        self._closing = threading.Event()
        name = f"latent-encoder-server {url or 'of our own'}"
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def load(self) -> tuple[int, int, int]:
        """How much it has to do; the least is to be chosen."""
        connection = self.connection
        queued = (connection.listener.queue_length or 0) if connection else 0
        return max(self.active, queued), self.active, self.served

    def lost(self, connection: Connection, reason: LatentEncoderError) -> None:
        """Somebody who used this connection found the server gone."""
        if self._drop(connection, reason):
            self._wake.set()

    def abandon(self, work: Abandoned) -> None:
        """Cancel a prompt, soon, without making the caller wait for it."""
        self._abandoned.append(work)
        self._wake.set()

    def close(self) -> None:
        """Cancel what was abandoned, disconnect, and end a server of ours."""
        self._closing.set()
        self._wake.set()
        if self.connection is None and not self._abandoned:
            self.thread.join(TICK_SECONDS)  # it may be waiting for a server that is not up, and leaves nothing behind
        else:
            self.thread.join(2 * CANCEL_SECONDS if self.supervisor is None else CANCEL_SECONDS)
        if self.supervisor is not None:
            self.supervisor.close(self.thread)

    def _run(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while not self._closing.is_set():
            try:
                connection = self._open()
                with connection.in_use():
                    self._announce(connection)
                    self._look_after(connection)
                backoff = FIRST_BACKOFF_SECONDS
            except Exception as error:  # the thread must live as long as the engine
                reason = error if isinstance(error, LatentEncoderError) else self._unforeseen(error)
                self._drop(self.connection, reason)
                self._note_failure(reason, first=backoff == FIRST_BACKOFF_SECONDS)
                self._rest(backoff)
                backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)
        self._settle()
        self._drop(self.connection, LatentEncoderError("ENGINE_UNAVAILABLE", "The engine is closed."))

    def _unforeseen(self, error: Exception) -> LatentEncoderError:
        if not self._closing.is_set():  # else it comes of that
            logger.error("Looking after ComfyUI failed", exc_info=error)
        where = self._url and parse_address(self._url).url  # without a password
        reason = f"Looking after ComfyUI{f' at {where}' if where else ''} failed ({type(error).__name__}: {error})."
        return LatentEncoderError("ENGINE_UNAVAILABLE", reason, "See whether what answers there is ComfyUI.")

    def _open(self) -> Connection:
        if self.supervisor is None:
            return self._connect(self._url or "")
        self._end_if_hung()
        self.supervisor.start()
        return self._connect(self.supervisor.url)

    def _announce(self, connection: Connection) -> None:
        """Let work come to it."""
        self._silent_since = None
        version = connection.facts.version
        logger.info("ComfyUI %s at %s takes work", version, connection.client.url)
        with self._changed:
            self.connection, self.reason = connection, None
            self._changed.notify_all()

    def _note_failure(self, error: LatentEncoderError, *, first: bool) -> None:
        if error.code == "TIMEOUT":
            self._silent_since = self._silent_since or time.monotonic()
        if not self._closing.is_set():
            logger.log(logging.WARNING if first else logging.DEBUG, "ComfyUI cannot take work: %s", error.message)
        with self._changed:
            self.reason = error
            self.failures += 1
            self._changed.notify_all()

    def _look_after(self, connection: Connection) -> None:
        """Return when the connection is lost, or the engine closes."""
        next_probe, silent, heard = time.monotonic() + PROBE_SECONDS, 0, connection.listener.connections
        while self.connection is connection and not self._closing.is_set():
            self._settle()
            self._end_if_stuck(connection)
            if self.supervisor is not None and not self.supervisor.running:
                reason = f"ComfyUI ended unexpectedly; its log is {self.supervisor.log_path}."
                self._drop(connection, LatentEncoderError("ENGINE_UNAVAILABLE", reason))
                return
            hung_up = heard > 0 and not connection.listener.connected
            heard = connection.listener.connections if connection.listener.connected else 0
            if hung_up or time.monotonic() >= next_probe:
                silent = self._probe(connection, silent, restarted=hung_up)
                next_probe = time.monotonic() + (0 if silent else PROBE_SECONDS)
            self._rest(TICK_SECONDS)

    def _probe(self, connection: Connection, silent: int, *, restarted: bool) -> int:
        """Ask for a sign of life; how often in a row there was none.

        Args:
            restarted: it may have been, so see whether the nodes are still there.
        """
        try:
            connection.client.queue_length(timeout=PROBE_TIMEOUT_SECONDS)
            if restarted:
                connection.look()
        except LatentEncoderError as error:
            silent += 1
            if error.code == "TIMEOUT":
                self._silent_since = self._silent_since or time.monotonic()
            if error.code != "TIMEOUT" or silent >= SILENT_PROBES:
                self._drop(connection, error)
            return silent
        self._silent_since = None
        return 0

    def _drop(self, connection: Connection | None, reason: LatentEncoderError) -> bool:
        with self._changed:
            if connection is None or self.connection is not connection:
                return False
            self.connection, self.reason = None, reason
            self._changed.notify_all()
        connection.retire()
        if not self._closing.is_set():
            logger.warning("ComfyUI at %s is left out: %s", connection.client.url, reason.message)
        return True

    def _settle(self) -> None:
        """Cancel the prompts that nobody waits for. A server of ours that does not even answer that is ended."""
        while self._abandoned:
            work = self._abandoned.popleft()
            try:
                self._cancel(work)
            except LatentEncoderError as error:
                if error.code == "TIMEOUT" and work.overdue and not self._closing.is_set():
                    self._end(work.connection, "does not answer")
            except Exception:  # of one prompt must not keep the others from being cancelled
                logger.exception("A prompt could not be cancelled")
            finally:
                work.connection.leave()

    def _cancel(self, work: Abandoned) -> None:
        client = work.connection.client
        if work.prompt_id is None:
            client.queue_length(timeout=CANCEL_SECONDS)  # only to see whether it answers
            return
        client.cancel(work.prompt_id, timeout=CANCEL_SECONDS)
        if work.overdue:
            self._stuck[work.prompt_id] = time.monotonic() + STUCK_SECONDS

    def _end_if_stuck(self, connection: Connection) -> None:
        """A prompt that runs on long after it was interrupted keeps everybody else waiting."""
        now = time.monotonic()
        due = [prompt_id for prompt_id, latest in self._stuck.items() if now >= latest]
        if not due:
            return
        try:
            stuck = connection.client.queued(timeout=CANCEL_SECONDS) & set(due)
        except LatentEncoderError:
            return  # the next probe will see to it
        for prompt_id in due:
            del self._stuck[prompt_id]
        if stuck:
            self._end(connection, f"does not stop a prompt {STUCK_SECONDS:g} s after its interruption")

    def _end_if_hung(self) -> None:
        if self._silent_since and time.monotonic() - self._silent_since > HANG_SECONDS:
            self._end(None, f"has not answered for {HANG_SECONDS:g} s")

    def _end(self, connection: Connection | None, fault: str) -> None:
        """End a server of ours, so that it is started again; of another's one can only speak."""
        self._stuck.clear()
        if self.supervisor is None:
            logger.warning("ComfyUI at %s %s", connection.client.url if connection else "its address", fault)
            return
        logger.warning("ComfyUI %s: it is started again", fault)
        self.supervisor.kill()
        self._silent_since = None
        self._drop(connection or self.connection, LatentEncoderError("ENGINE_UNAVAILABLE", f"ComfyUI {fault}."))

    def _rest(self, seconds: float) -> None:
        if self._wake.wait(seconds):
            self._wake.clear()
            if self.connection is None:
                self._settle()
