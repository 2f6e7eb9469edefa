"""The requests about sessions that each server process answers."""

from resolvers.sessions.drain import COUNT_AND_REFUSE_SESSIONS
from resolvers.sessions.listing import LIST_SESSIONS, SUMMARIZE_SESSIONS
from resolvers.sessions.terminate import TERMINATE_SESSIONS

SESSION_REQUEST_KINDS = (
    LIST_SESSIONS,
    SUMMARIZE_SESSIONS,
    TERMINATE_SESSIONS,
    COUNT_AND_REFUSE_SESSIONS,
)
