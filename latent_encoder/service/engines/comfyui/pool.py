"""The servers that work can go to: which of them are up, and which has the least to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.base import Call

from .connection import Connection
from .member import TICK_SECONDS, Abandoned, Connect, Member
from .supervisor import Supervisor

RETRY_SECONDS = 5.0
"""How long an encode that lost its server waits for one that is up, where none of them is ours to start."""

CLOSE_SECONDS = 5.0


class Lease:
    """The use of one server for one encode."""

    def __init__(self, member: Member, connection: Connection) -> None:
        self.member = member
        self.connection = connection

    def abandon(self, prompt_id: str | None, *, overdue: bool) -> None:
        """Nobody waits for this encode any more: cancel its prompt in the background.

        Args:
            prompt_id: None where it has none yet.
            overdue: it took too long; a server of ours that does not answer is then started again.
        """
        self.connection.enter()  # until it is cancelled
        self.member.abandon(Abandoned(self.connection, prompt_id, overdue))

    def lost(self, reason: LatentEncoderError) -> None:
        self.member.lost(self.connection, reason)


class Pool:
    """The servers of one engine.

    Args:
        urls: of servers that run anyway.
        supervisor: one that is ours to run.
        connect: opens a connection to a URL.
    """

    def __init__(self, urls: Sequence[str], supervisor: Supervisor | None, connect: Connect) -> None:
        self.changed = threading.Condition()
        self.members = [Member(url, None, connect, self.changed) for url in urls]
        if supervisor is not None:
            self.members.append(Member(None, supervisor, connect, self.changed))
        self._closed = False

    def start(self) -> None:
        """Try every server; returns when one is up, or each has been tried.

        Raises:
            LatentEncoderError: why none of them is up. They are tried again until ``close``.
        """
        with self.changed:
            for member in self.members:
                if member.thread.ident is None and not self._closed:
                    member.thread.start()
            while not self.changed.wait_for(self._started, TICK_SECONDS):
                pass  # a signal may be noticed only now: it does not always wake a thread that waits for ever
        self.check()

    def check(self) -> None:
        """Return where a server is up.

        Raises:
            LatentEncoderError: ENGINE_UNAVAILABLE, NODES_MISSING: why none is.
        """
        with self.changed:
            if self._closed or not any(member.connection for member in self.members):
                raise self._why_none()

    def connections(self) -> list[Connection]:
        """Those that are up."""
        return [connection for member in self.members if (connection := member.connection)]

    @contextmanager
    def take(self, call: Call, avoid: Collection[Member] = ()) -> Iterator[Lease]:
        """Use the server that has the least to do; waits for one of ours that is being started.

        Args:
            avoid: used only where no other one is up.

        Raises:
            LatentEncoderError: INTERRUPTED, TIMEOUT; ENGINE_UNAVAILABLE, NODES_MISSING: why no server is up.
        """
        with self.changed:
            member, connection = self._choose(call, avoid)
            member.active += 1
            connection.enter()
        try:
            yield Lease(member, connection)
        finally:
            with self.changed:
                member.active -= 1
                member.served += 1
                self.changed.notify_all()
            connection.leave()

    def others(self, avoid: Collection[Member]) -> bool:
        """Whether a server is up that is none of these."""
        return any(member.connection for member in self.members if member not in avoid)

    def close(self) -> None:
        """Let the running encodes end with an error, cancel their prompts, and end a server of ours."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
            self.changed.wait_for(lambda: not any(member.active for member in self.members), CLOSE_SECONDS)
        threads = [threading.Thread(target=member.close) for member in self.members if member.thread.ident]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def check_open(self) -> None:
        """Raise ENGINE_UNAVAILABLE once it is closed."""
        if self._closed:
            raise self._why_none()

    def _choose(self, call: Call, avoid: Collection[Member]) -> tuple[Member, Connection]:
        """Called with ``changed`` held."""
        failures = {member: member.failures for member in self.members}
        give_up = time.monotonic() + (RETRY_SECONDS if avoid else 0.0)
        while True:
            call.check()
            if self._closed:
                raise self._why_none()
            up = [member for member in self.members if member.connection and member not in avoid]
            up = up or [member for member in self.members if member.connection]
            if up:
                member = min(up, key=Member.load)
                if member.connection is not None:
                    return member, member.connection
            starting = any(member.supervisor and member.failures == failures[member] for member in self.members)
            if not starting and time.monotonic() >= give_up:
                raise self._why_none()
            self.changed.wait(TICK_SECONDS)

    def _started(self) -> bool:
        up = any(member.connection for member in self.members)
        return self._closed or up or all(member.reason for member in self.members)

    def _why_none(self) -> LatentEncoderError:
        """Every server's reason in one error, with the first one's code."""
        if self._closed:
            return LatentEncoderError("ENGINE_UNAVAILABLE", "The engine is closed.")
        reasons = [member.reason for member in self.members if member.reason]
        if not reasons:
            return LatentEncoderError("ENGINE_UNAVAILABLE", "ComfyUI is being started.", "Wait a moment.")
        first = reasons[0]
        code = "ENGINE_UNAVAILABLE" if first.code == "TIMEOUT" else first.code
        again = any(reason.retryable for reason in reasons)
        return LatentEncoderError(code, "\n".join(reason.message for reason in reasons), first.hint, retryable=again)
