"""Termination of sessions in all processes."""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import AccessToken
from models.auth.security_log import SecurityEventAction
from models.errors import ErrorCode, InvalidInput, ServiceUnavailable
from models.oauth.tables import OauthAuthorizationCode, OauthGrant, OauthRefreshToken
from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionTermination
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.auth import security_log
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.cluster.process_requests import ProcessRequestKind, ask_all_processes
from resolvers.context import Context
from resolvers.oauth.refresh_token_end import delete_tokens_of_users
from resolvers.sessions.listing import NO_USER_ID
from resolvers.sessions.session_scope import SessionScope, require_managed_scope
from resolvers.users.selection import UserSelector, require_selected_users

MAX_REASON_LENGTH = 120  # characters
USERS_PER_TRANSACTION = 200
END_TIMEOUT = 0.3  # seconds that each process waits for the end of its sessions


@dataclass(frozen=True, slots=True)
class TerminationRequest:
    """Which sessions end, and how. `users` without a condition means the viewer.

    If `session_ids` is given, `users` must not be, and no token can be revoked.
    """

    users: UserSelector
    session_ids: Sequence[int] | None = None
    termination: SessionTermination = field(default_factory=SessionTermination)
    revokes_tokens: bool = False
    caller_session_id: int | None = None  # this session ends after the response


@dataclass(frozen=True, slots=True)
class TerminatedSessions:
    """The number of sessions that have ended or are ending, by username."""

    ended_count: int
    pending_count: int
    usernames: Sequence[str]  # one for each session with a user, in alphabetical order
    unresponsive_nodes: Sequence[str]


@dataclass(frozen=True, slots=True)
class _EndedSessionCounts:
    """Numbers of ended and of ending sessions, by user id; NO_USER_ID without a user."""

    ended: Counter[int]
    pending: Counter[int]
    unresponsive_nodes: Sequence[str]

    @property
    def user_ids(self) -> set[int]:
        """The users who had a session."""
        return {*self.ended, *self.pending} - {NO_USER_ID}


async def _end_sessions_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Begin to end sessions of this process, and wait a moment for their end."""
    registry, ids = environment.live_sessions, arguments["sessionIds"]
    session_ids = None if ids is None else frozenset(ids)
    candidates = [
        session for session in registry if session_ids is None or session.session_id in session_ids
    ]
    scope = SessionScope.from_arguments(arguments["scope"])
    sessions = await scope.items_in_scope(environment, candidates)
    open_ids = set[int]()
    if not arguments["isDryRun"]:
        termination = SessionTermination(arguments["reason"], arguments["isForced"])
        after_response = SessionTermination(arguments["reason"])
        caller_id = arguments["callerSessionId"]
        for session in sessions:
            is_caller = session.session_id == caller_id
            registry.terminate_unless_ending(session, after_response if is_caller else termination)
        awaited_ids = {session.session_id for session in sessions} - {caller_id}
        await registry.wait_for_ends_and_return_open(awaited_ids, END_TIMEOUT)
        open_ids = {session.session_id for session in sessions if session.session_id in registry}
    ended, pending = Counter[int](), Counter[int]()
    for session in sessions:
        counter = pending if session.session_id in open_ids else ended
        counter[session.user_id or NO_USER_ID] += 1
    return {"ended": list(ended.items()), "pending": list(pending.items())}


TERMINATE_SESSIONS = ProcessRequestKind(
    "SESSION_TERMINATE", _end_sessions_for_answer, applies_late=True
)


async def terminate_sessions_and_write_security_log(
    ctx: Context, request: TerminationRequest
) -> TerminatedSessions:
    """End sessions in all processes, and write the security log of their users.

    A dry run ends nothing. Must not be called in a transaction that has changed something, since
    other processes write to the database. Raises ServiceUnavailable, and changes nothing, if there
    is neither a session nor a token to revoke; InvalidInput if the reason is too long; also the
    errors of `require_managed_scope`, and of `require_selected_users` if tokens are revoked.
    """
    _require_valid_reason(request.termination.reason)
    began_at = ctx.environment.now()
    token_owner_ids = set[int]()
    if request.session_ids is not None:
        scope = await require_managed_scope(ctx, None)
    elif request.revokes_tokens:
        rows = await require_selected_users(ctx, request.users)
        scope = SessionScope(user_ids=frozenset(row.id for row in rows))
        token_owner_ids = await _load_token_owner_ids(ctx, scope.user_ids or ())
    else:
        scope = await require_managed_scope(ctx, request.users)
    if token_owner_ids:  # before clients can sign in again
        await log_end_of_sessions_and_revoke_tokens(ctx, token_owner_ids, revokes_tokens=True)
    counts = await _ask_processes_to_terminate(ctx, request, scope)
    if not (counts.ended or counts.pending or token_owner_ids or counts.unresponsive_nodes):
        raise ServiceUnavailable("None of the sessions is open.", code=ErrorCode.NO_SESSION)
    recorded_ids = counts.user_ids
    if counts.unresponsive_nodes and scope.user_ids is not None:
        # sessions of unresponsive processes end when these read the users' rows again
        recorded_ids |= scope.user_ids
    if counts.unresponsive_nodes and request.session_ids is None:
        await _end_sessions_at_next_check(ctx, recorded_ids, began_at)
    await log_end_of_sessions_and_revoke_tokens(ctx, recorded_ids - token_owner_ids)
    usernames_by_id = await _load_usernames(ctx, counts.user_ids)
    total = counts.ended + counts.pending
    return TerminatedSessions(
        counts.ended.total(),
        counts.pending.total(),
        sorted(usernames_by_id[key] for key in total.elements() if key in usernames_by_id),
        counts.unresponsive_nodes,
    )


def _require_valid_reason(reason: str | None) -> None:
    if reason and (len(reason) > MAX_REASON_LENGTH or not reason.isprintable()):
        text = f"The reason has at most {MAX_REASON_LENGTH} printable characters."
        raise InvalidInput(text, constraint=ValidationConstraint.LENGTH, path=["reason"])


async def _ask_processes_to_terminate(
    ctx: Context, request: TerminationRequest, scope: SessionScope
) -> _EndedSessionCounts:
    """Ask all processes to end the sessions of a scope; return how many ended and are pending.

    Nodes that don't answer are in the result. A dry run only counts.
    """
    arguments = {
        "scope": scope.to_arguments(),
        "sessionIds": None if request.session_ids is None else list(request.session_ids),
        "reason": request.termination.reason,
        "isForced": request.termination.is_forced,
        "isDryRun": ctx.is_dry_run,
        "callerSessionId": request.caller_session_id,
    }
    answers = await ask_all_processes(ctx.environment, TERMINATE_SESSIONS, arguments)
    ended, pending = Counter[int](), Counter[int]()
    for answer in answers.answers:
        ended.update(dict(answer.answer["ended"]))
        pending.update(dict(answer.answer["pending"]))
    return _EndedSessionCounts(ended, pending, answers.unresponsive_nodes)


async def _load_token_owner_ids(ctx: Context, user_ids: Collection[int]) -> set[int]:
    """Load the ids of those of these users who have an access token, refresh token or code."""
    statement = select(col(AccessToken.user_id)).where(col(AccessToken.user_id).in_(user_ids))
    owner_ids = {row.user_id for row in await ctx.read(statement.distinct())}
    for table, is_unused in (
        (OauthRefreshToken, col(OauthRefreshToken.replaced_at).is_(None)),
        (OauthAuthorizationCode, col(OauthAuthorizationCode.used_at).is_(None)),
    ):
        owners = (
            select(col(OauthGrant.user_id))
            .join(table, col(table.grant_id) == col(OauthGrant.id))
            .where(col(OauthGrant.user_id).in_(user_ids), is_unused)
        )
        owner_ids |= {row.user_id for row in await ctx.read(owners.distinct())}
    return owner_ids


async def _load_usernames(ctx: Context, user_ids: Collection[int]) -> dict[int, str]:
    if not user_ids:
        return {}
    statement = select(col(User.id), col(User.username)).where(col(User.id).in_(user_ids))
    return {row.id: row.username for row in await ctx.read(statement)}


async def log_end_of_sessions_and_revoke_tokens(
    ctx: Context, user_ids: Collection[int], *, revokes_tokens: bool = False
) -> None:
    """Write the end of the sessions of these users to the security log. A dry run stores nothing.

    The transactions are separate ones, each for at most USERS_PER_TRANSACTION users: a later error
    must not bring tokens back.
    """
    detail = {"tokens": True} if revokes_tokens else {}

    async def log_end_and_delete_tokens(
        chunk_ctx: Context, session: AsyncSession, chunk_ids: Sequence[int]
    ) -> None:
        if revokes_tokens:
            await delete_tokens_of_users(session, chunk_ids)
        events = [
            NewSecurityEvent(SecurityEventAction.SESSION_TERMINATED, user_id, detail=detail)
            for user_id in chunk_ids
        ]
        await security_log.insert_security_events_and_queue_notices(chunk_ctx, session, events)

    await _write_in_chunks(
        ctx, user_ids, log_end_and_delete_tokens, drops_credentials=revokes_tokens
    )


async def _end_sessions_at_next_check(
    ctx: Context, user_ids: Collection[int], ended_at: datetime
) -> None:
    """Let each process end, at its next check, the sessions of these users from before a time."""

    async def write(_: Context, session: AsyncSession, chunk_ids: Sequence[int]) -> None:
        ended_users = update(User).where(col(User.id).in_(chunk_ids))
        await (await session.connection()).execute(ended_users.values(sessions_ended_at=ended_at))

    await _write_in_chunks(ctx, user_ids, write, drops_credentials=True)


async def _write_in_chunks(
    ctx: Context,
    user_ids: Collection[int],
    write: Callable[[Context, AsyncSession, Sequence[int]], Awaitable[None]],
    *,
    drops_credentials: bool,
) -> None:
    """Call `write` with USERS_PER_TRANSACTION users at a time, each time in a new transaction.

    With `drops_credentials`, their cached credentials are dropped, and all processes check their
    connections. A dry run writes nothing.
    """
    if ctx.is_dry_run:
        return
    ordered_ids = sorted(user_ids)
    for start in range(0, len(ordered_ids), USERS_PER_TRANSACTION):
        chunk = ordered_ids[start : start + USERS_PER_TRANSACTION]
        separate_ctx = ctx.fresh_copy()
        async with separate_ctx.write_session(*chunk) as session:
            await write(separate_ctx, session, chunk)
        ctx.committed_position = {
            **(ctx.committed_position or {}),
            **(separate_ctx.committed_position or {}),
        }
        if drops_credentials:
            drop_cached_credentials(ctx.environment, *chunk)
