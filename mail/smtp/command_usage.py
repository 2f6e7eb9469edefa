"""Count the commands of SMTP and LMTP sessions in the usage counters."""

from time import perf_counter

from models.metrics.usage_recorder import (
    NO_USER,
    UsageCaller,
    UsageRecorder,
    smtp_command_name,
)
from models.sessions.live_sessions import LiveSession

UNKNOWN_VERB = "unknown"
FAILURE_DIGITS = ("4", "5")  # first digits of the replies to failed commands


class CommandUsage:
    """Counts the commands of one session, with the time from the command to its reply."""

    __slots__ = ("_recorder", "_session", "_started_at", "_verb")

    def __init__(self, recorder: UsageRecorder, session: LiveSession) -> None:
        self._recorder = recorder
        self._session = session
        self._verb: str | None = None  # of the command that is handled
        self._started_at = 0.0  # seconds of perf_counter

    def begin_command(self, verb: str) -> None:
        """Note that a command is handled now."""
        self._verb, self._started_at = verb, perf_counter()

    def count_command_with_reply(self, smtp_reply: str) -> None:
        """Count the command that was handled; nothing for a line that was no command."""
        verb, self._verb = self._verb, None
        if verb is None:
            return
        session = self._session
        self._recorder.count_smtp_command(
            smtp_command_name(session.service.value, verb),
            UsageCaller(session.user_id or NO_USER, session.peer.ip, session.session_id),
            perf_counter() - self._started_at,
            has_failed=smtp_reply.startswith(FAILURE_DIGITS),
        )
