"""Waiting until users have no session and no running task."""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlmodel import col

from models.admin.tasks import Task, TaskState
from models.errors import InUse, ServiceUnavailable
from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionTermination
from models.store.columns import ColumnRow
from resolvers.cluster.process_requests import ProcessRequestKind, ask_all_processes
from resolvers.context import Context
from resolvers.sessions.session_scope import SessionScope
from resolvers.sessions.terminate import log_end_of_sessions_and_revoke_tokens
from resolvers.users.selection import UserSelector, require_selected_users

ROUND_SECONDS = 0.5  # between two counts
REFUSAL_SECONDS = 5.0  # after the last count; a process that ends does not leave users locked out


@dataclass(frozen=True, slots=True)
class DrainRequest:
    """The users whose sessions and tasks shall end, and the longest wait for it.

    With `terminates`, their sessions are ended, and new ones are refused during the wait.
    """

    users: UserSelector
    timeout: timedelta
    terminates: bool = False
    caller_session_id: int | None = None  # this session is neither ended nor counted


async def _count_or_end_sessions_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Count sessions of this process; on request, end them and refuse new ones."""
    registry, scope = environment.live_sessions, SessionScope.from_arguments(arguments["scope"])
    refusal_seconds = arguments["refusalSeconds"]
    if refusal_seconds is not None:
        registry.refuse_or_accept_new_sessions(arguments["scope"]["userIds"], refusal_seconds)
    sessions = [
        session
        for session in await scope.items_in_scope(environment, registry)
        if session.session_id != arguments["callerSessionId"]
    ]
    terminated_user_ids = {
        session.user_id
        for session in sessions
        if refusal_seconds and registry.terminate_unless_ending(session, SessionTermination())
    }
    return {"count": len(sessions), "terminatedUserIds": sorted(filter(None, terminated_user_ids))}


COUNT_AND_REFUSE_SESSIONS = ProcessRequestKind("SESSION_DRAIN", _count_or_end_sessions_for_answer)


async def wait_until_drained_and_load_users(
    ctx: Context, request: DrainRequest
) -> Sequence[ColumnRow]:
    """Wait until the users have no session and no running task, and return their rows.

    Raises InUse with the number of sessions and tasks that remain at the timeout,
    ServiceUnavailable if nothing is known to remain and a process does not answer, and the errors
    of `require_selected_users`.
    """
    rows = await require_selected_users(ctx, request.users)
    user_ids = [row.id for row in rows]
    deadline = time.monotonic() + request.timeout.total_seconds()
    terminates = request.terminates and not ctx.is_dry_run
    try:
        while True:
            refusal_seconds = REFUSAL_SECONDS if terminates else None
            remaining = await _count_remaining_and_end_sessions(
                ctx, request, user_ids, refusal_seconds
            )
            if remaining.is_empty:
                return rows
            seconds_left = deadline - time.monotonic()
            if ctx.is_dry_run or seconds_left <= 0:
                raise remaining.timeout_error()
            await asyncio.sleep(min(ROUND_SECONDS, seconds_left))
    finally:
        if terminates:
            await _count_remaining_and_end_sessions(ctx, request, user_ids, 0)


@dataclass(frozen=True, slots=True)
class _RemainingWork:
    """The sessions and tasks that have not ended."""

    session_count: int
    task_count: int
    unresponsive_nodes: Sequence[str]

    @property
    def is_empty(self) -> bool:
        """True if no session and no task is left in any process."""
        return not (self.session_count or self.task_count or self.unresponsive_nodes)

    def timeout_error(self) -> InUse | ServiceUnavailable:
        """Return the error of a wait that ends with this work."""
        if self.session_count or self.task_count:
            text = f"{self.session_count} sessions are open and {self.task_count} tasks run."
            return InUse(text, sessions=self.session_count, tasks=self.task_count, path=["users"])
        nodes = ", ".join(self.unresponsive_nodes)
        return ServiceUnavailable(f"These nodes did not answer: {nodes}.")


async def _count_remaining_and_end_sessions(
    ctx: Context, request: DrainRequest, user_ids: Collection[int], refusal_seconds: float | None
) -> _RemainingWork:
    """Count the sessions and running tasks of these users.

    With `refusal_seconds`, sessions end, which the security log of their users records, and new
    ones are refused for this time; 0 accepts them again.
    """
    arguments = {
        "scope": SessionScope(user_ids=frozenset(user_ids)).to_arguments(),
        "refusalSeconds": refusal_seconds,
        "callerSessionId": request.caller_session_id,
    }
    answers = await ask_all_processes(ctx.environment, COUNT_AND_REFUSE_SESSIONS, arguments)
    terminated_user_ids = {
        user_id for answer in answers.answers for user_id in answer.answer["terminatedUserIds"]
    }
    if terminated_user_ids:
        await log_end_of_sessions_and_revoke_tokens(ctx, terminated_user_ids)
    statement = select(func.count().label("task_count")).where(
        col(Task.user_id).in_(user_ids), col(Task.state) == TaskState.RUNNING
    )
    (tasks,) = await ctx.environment.database.read(statement)
    session_count = sum(answer.answer["count"] for answer in answers.answers)
    return _RemainingWork(session_count, tasks.task_count, answers.unresponsive_nodes)
