"""List and end sessions for the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graph.types import global_ids
from merganser.server.environment_factory import root_context
from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionService, SessionTermination
from models.store.keyset_pages import MAX_PAGE_SIZE, PageRequest
from resolvers.sessions import listing, terminate
from resolvers.sessions.listing import SessionConditions, SessionOrder
from resolvers.sessions.terminate import TerminatedSessions, TerminationRequest
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import UserSelector

ORDERING = "sessions"


@dataclass(frozen=True, slots=True)
class ListedSessions:
    """Open sessions as JSON values, and the nodes that did not answer."""

    sessions: list[dict[str, Any]]
    unresponsive_nodes: list[str]


async def load_sessions_as_json(
    environment: Environment,
    users: UserSelector | None,
    services: tuple[SessionService, ...] | None,
) -> ListedSessions:
    """Load the open sessions of all nodes, the newest first, as JSON values."""
    ctx, cursor = root_context(environment), None
    conditions = SessionConditions(users, services)
    rows, unresponsive_nodes = list[listing.SessionRow](), set[str]()
    while True:
        page_request = PageRequest(ORDERING, MAX_PAGE_SIZE, cursor)
        result = await listing.read_visible_session_page(
            ctx, conditions, page_request, SessionOrder.CONNECTED_AT_DESC
        )
        rows += result.page.rows
        unresponsive_nodes.update(result.unresponsive_nodes)
        if not result.page.has_next:
            break
        cursor = listing.cursor_of_session(rows[-1], ORDERING)
    user_ids = sorted({row.user_id for row in rows if row.user_id})
    users_by_id = dict(
        zip(
            user_ids,
            await ctx.load_many(user_loaders.load_visible_users_by_id, user_ids),
            strict=True,
        )
    )
    sessions = []
    for row in rows:
        user = users_by_id.get(row.user_id) if row.user_id else None
        sessions.append(
            row._asdict()
            | {
                "id": global_ids.encode("Session", row.id),
                "user": user.username if user else None,
                "service": row.service.value,
                "connected_at": row.connected_at.isoformat(timespec="seconds"),
                "last_active_at": row.last_active_at.isoformat(timespec="seconds"),
            }
        )
        del sessions[-1]["user_id"]
    return ListedSessions(sessions, sorted(unresponsive_nodes))


async def terminate_sessions(
    environment: Environment,
    users: UserSelector | None,
    session_ids: Sequence[str] | None,
    termination: SessionTermination,
    *,
    revokes_tokens: bool,
) -> TerminatedSessions:
    """End the sessions of these users, or those with these global IDs, on all nodes.

    Raises as `terminate_sessions_and_write_security_log`, and InvalidInput for a malformed ID.
    """
    request = TerminationRequest(
        users or UserSelector(),
        global_ids.decode_all("Session", session_ids, path="session") if session_ids else None,
        termination,
        revokes_tokens=revokes_tokens,
    )
    return await terminate.terminate_sessions_and_write_security_log(
        root_context(environment), request
    )
