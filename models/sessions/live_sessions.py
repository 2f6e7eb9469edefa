"""The open sessions of this process, in memory, and the users whose sessions are refused."""

import asyncio
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class SessionService(StrEnum):
    """The service that a session uses."""

    EVENT_STREAM = "EVENT_STREAM"
    LMTP = "LMTP"
    SMTP = "SMTP"
    SUBMISSION = "SUBMISSION"
    WEBSOCKET = "WEBSOCKET"


@dataclass(frozen=True, slots=True)
class SessionPeer:
    """The addresses of a session.

    `ip` is the address of the client, also if the connection came through a trusted proxy. The
    destination is the address of this machine at which the connection arrived.
    """

    ip: str | None = None
    is_proxied: bool = False
    destination_ip: str | None = None
    destination_port: int | None = None


@dataclass(frozen=True, slots=True)
class SessionTermination:
    """How a session ends. Unless it is forced, a running message or mutation can end first.

    `asks_to_reconnect`: WebSockets and event streams end so that clients connect again at once, to
    another node.
    """

    reason: str | None = None  # text for the client
    is_forced: bool = False
    asks_to_reconnect: bool = False


class LiveSession(Protocol):
    """An open session."""

    session_id: int
    connected_at: datetime

    @property
    def service(self) -> SessionService: ...

    @property
    def user_id(self) -> int | None:
        """The user who has signed in; None without one."""

    @property
    def peer(self) -> SessionPeer: ...

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last command or message of the client, or event for it."""

    @property
    def subscription_count(self) -> int:
        """Number of open GraphQL subscriptions."""

    def terminate(self, termination: SessionTermination) -> None:
        """Begin to end the session. It leaves the registry when it has ended."""


class ActivityClock:
    """The time of the last activity of a session, by the monotonic clock."""

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at = time.monotonic()

    def note_activity(self) -> None:
        """Remember that the session is active now."""
        self._at = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last activity."""
        return time.monotonic() - self._at


class LiveSessionRegistry:
    """The open sessions of this process by id.

    New sessions of some users are refused for a time, while an administrator waits for the end of
    their sessions.
    """

    def __init__(self) -> None:
        self._sessions: dict[int, LiveSession] = {}
        self._forced_by_ending_id: dict[int, bool] = {}
        self._refused_until: dict[int, float] = {}  # by user id; seconds of the monotonic clock
        self._removal_waiters: set[asyncio.Event] = set()

    def __iter__(self) -> Iterator[LiveSession]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: int) -> bool:
        return session_id in self._sessions

    def add(self, session: LiveSession) -> None:
        """Add a session that has begun."""
        self._sessions[session.session_id] = session

    def remove(self, session: LiveSession) -> None:
        """Remove a session that has ended."""
        self._sessions.pop(session.session_id, None)
        self._forced_by_ending_id.pop(session.session_id, None)
        for waiter in self._removal_waiters:
            waiter.set()

    def terminate_unless_ending(
        self, session: LiveSession, termination: SessionTermination
    ) -> bool:
        """Begin to end a session, and return True if it was not ending before.

        A forced termination also ends a session that is ending unforced. A session that has ended
        is left alone.
        """
        if session.session_id not in self._sessions:
            return False
        was_forced = self._forced_by_ending_id.get(session.session_id)
        if was_forced is None or (termination.is_forced and not was_forced):
            self._forced_by_ending_id[session.session_id] = termination.is_forced
            session.terminate(termination)
        return was_forced is None

    async def wait_for_ends_and_return_open(
        self, session_ids: Collection[int], timeout_seconds: float
    ) -> set[int]:
        """Wait until these sessions have ended; return those that are open at the timeout."""
        removed = asyncio.Event()
        self._removal_waiters.add(removed)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    while not self._sessions.keys().isdisjoint(session_ids):
                        removed.clear()
                        await removed.wait()
        finally:
            self._removal_waiters.discard(removed)
        return self._sessions.keys() & set(session_ids)

    def refuse_or_accept_new_sessions(self, user_ids: Collection[int], seconds: float) -> None:
        """Refuse new sessions of these users for this time, or accept them again for 0."""
        now = time.monotonic()
        self._refused_until = {
            user_id: until for user_id, until in self._refused_until.items() if until > now
        }
        for user_id in user_ids:
            if seconds > 0:
                self._refused_until[user_id] = now + seconds
            else:
                self._refused_until.pop(user_id, None)

    def accepts_sessions_of(self, user_id: int) -> bool:
        """True unless new sessions of the user are refused now."""
        return not self._refused_until or self._refused_until.get(user_id, 0) <= time.monotonic()
