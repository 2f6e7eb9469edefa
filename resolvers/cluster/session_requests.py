"""Requests to all processes about the sessions of users on nodes."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionTermination
from resolvers.cluster.process_requests import ProcessRequestKind, ask_all_processes
from resolvers.context import Context
from resolvers.sessions.terminate import END_TIMEOUT, log_end_of_sessions_and_revoke_tokens

MOVED_REASON = "Your account is served by another server: connect again."
MAX_USERS_PER_REQUEST = 20_000  # ids: models/cluster/process_requests.py limits the bytes


@dataclass(frozen=True, slots=True)
class NodeSessions:
    """The sessions of all processes, and the numbers of processes that answered, by server id."""

    session_counts: Mapping[str, int]
    process_counts: Mapping[str, int]
    user_ids: Mapping[str, set[int]]  # users that were asked for and have a session there
    unresponsive_nodes: Sequence[str]


@dataclass(frozen=True, slots=True)
class EndedSessions:
    """The number of sessions that have ended or are ending."""

    terminated_count: int
    pending_count: int
    unresponsive_nodes: Sequence[str]


async def _count_sessions_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Count the sessions of this process, and name the users who have one."""
    server, wanted = environment.process.server_id, arguments["userIds"]
    user_ids = {session.user_id for session in environment.live_sessions if session.user_id}
    if wanted is not None:
        user_ids &= set(wanted)
    elif arguments["server"] != server:
        user_ids = set()
    return {
        "server": server,
        "sessionCount": len(environment.live_sessions),
        "userIds": sorted(user_ids),
    }


NODE_SESSIONS = ProcessRequestKind("NODE_SESSIONS", _count_sessions_for_answer)


async def _end_sessions_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """End the sessions of users in this process, if it belongs to one of the servers."""
    server, registry = environment.process.server_id, environment.live_sessions
    if server == arguments["exceptServer"] or arguments["onlyServer"] not in (None, server):
        return {"ended": 0, "pending": 0, "userIds": []}
    user_ids = set(arguments["userIds"])
    sessions = [session for session in registry if session.user_id in user_ids]
    caller_id = arguments["callerSessionId"]
    termination = SessionTermination(MOVED_REASON, asks_to_reconnect=True)
    for session in sessions:
        registry.terminate_unless_ending(session, termination)
    awaited_ids = {session.session_id for session in sessions} - {caller_id}
    await registry.wait_for_ends_and_return_open(awaited_ids, END_TIMEOUT)
    pending_count = sum(session.session_id in registry for session in sessions)
    return {
        "ended": len(sessions) - pending_count,
        "pending": pending_count,
        "userIds": sorted({session.user_id for session in sessions if session.user_id}),
    }


END_NODE_SESSIONS = ProcessRequestKind(
    "NODE_SESSIONS_END", _end_sessions_for_answer, applies_late=True
)
CLUSTER_REQUEST_KINDS = (NODE_SESSIONS, END_NODE_SESSIONS)


async def ask_processes_for_node_sessions(
    environment: Environment, user_ids: Iterable[int] | None, server: str | None = None
) -> NodeSessions:
    """Ask all processes for their sessions.

    `user_ids` None: the answer names all users with a session on `server`.
    """
    arguments = {"userIds": None if user_ids is None else sorted(user_ids), "server": server}
    answers = await ask_all_processes(environment, NODE_SESSIONS, arguments)
    counts, process_counts = Counter[str](), Counter[str]()
    users = defaultdict[str, set[int]](set)
    for answer in answers.answers:
        server = answer.answer["server"]
        counts[server] += answer.answer["sessionCount"]
        process_counts[server] += 1
        users[server].update(answer.answer["userIds"])
    return NodeSessions(counts, process_counts, users, answers.unresponsive_nodes)


async def end_sessions_and_write_security_log(
    ctx: Context,
    user_ids: Collection[int],
    *,
    only_server: str | None = None,
    except_server: str | None = None,
) -> EndedSessions:
    """End the sessions of users on one server or on all but one, and write their security log.

    Running messages and operations can end first. Clients are told to connect again. Must not be
    called in a transaction that has changed something. A dry run ends nothing.
    """
    ended, pending, unresponsive = 0, 0, set[str]()
    ordered_ids = [] if ctx.is_dry_run else sorted(user_ids)
    affected_ids = set[int]()
    for start in range(0, len(ordered_ids), MAX_USERS_PER_REQUEST):
        arguments = {
            "userIds": ordered_ids[start : start + MAX_USERS_PER_REQUEST],
            "onlyServer": only_server,
            "exceptServer": except_server,
            "callerSessionId": getattr(ctx, "live_session_id", None),
        }
        answers = await ask_all_processes(ctx.environment, END_NODE_SESSIONS, arguments)
        for answer in answers.answers:
            ended += answer.answer["ended"]
            pending += answer.answer["pending"]
            affected_ids.update(answer.answer["userIds"])
        unresponsive.update(answers.unresponsive_nodes)
    await log_end_of_sessions_and_revoke_tokens(ctx, affected_ids)
    return EndedSessions(ended, pending, sorted(unresponsive))
