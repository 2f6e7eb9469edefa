"""The sessions on nodes, and the nodes with sessions of users. For an ADMIN."""

from collections.abc import Sequence
from typing import NamedTuple

from models.store.columns import ColumnRow
from resolvers.cluster.loaders import READ_RULE, load_all_nodes
from resolvers.cluster.session_requests import ask_processes_for_node_sessions
from resolvers.context import Context


class ServerKey(NamedTuple):
    """The server of a node, and the number of its processes."""

    server: str | None
    process_count: int


async def count_sessions_by_server(ctx: Context, keys: list[ServerKey]) -> list[int | None]:
    """Count the sessions of servers. None if a process of the server did not answer.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READ_RULE)
    sessions = await ask_processes_for_node_sessions(ctx.environment, ())
    return [
        sessions.session_counts.get(key.server or "", 0)
        if not key.server or sessions.process_counts.get(key.server, 0) >= key.process_count
        else None
        for key in keys
    ]


async def load_session_nodes(ctx: Context, user_ids: list[int]) -> list[Sequence[ColumnRow]]:
    """Load the nodes on which users have sessions, in the order of the ids of the users.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    rows = await load_all_nodes(ctx)
    sessions = await ask_processes_for_node_sessions(ctx.environment, user_ids)
    return [
        [row for row in rows if row.server and user_id in sessions.user_ids.get(row.server, ())]
        for user_id in user_ids
    ]
