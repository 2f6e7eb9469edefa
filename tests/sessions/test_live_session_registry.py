"""The registry of the open sessions of a process."""

from datetime import UTC, datetime

from models.sessions.live_sessions import (
    LiveSessionRegistry,
    SessionPeer,
    SessionService,
    SessionTermination,
)


class RecordedSession:
    """A session that records its terminations."""

    session_id = 7
    connected_at = datetime(2026, 1, 1, tzinfo=UTC)
    service = SessionService.SMTP
    user_id = None
    peer = SessionPeer()
    idle_seconds = 0.0
    subscription_count = 0

    def __init__(self) -> None:
        self.terminations: list[SessionTermination] = []

    def terminate(self, termination: SessionTermination) -> None:
        """Record the termination."""
        self.terminations.append(termination)


def test_session_that_has_ended_is_not_terminated() -> None:
    registry, session = LiveSessionRegistry(), RecordedSession()
    registry.add(session)
    registry.remove(session)
    assert not registry.terminate_unless_ending(session, SessionTermination())
    assert session.terminations == []
    registry.add(session)  # a kept entry would prevent this termination
    assert registry.terminate_unless_ending(session, SessionTermination())
    assert len(session.terminations) == 1
