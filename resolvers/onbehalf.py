"""Sending for somebody else: an administrator does it in the name of an account they manage."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import select
from sqlmodel import col

from models.columns import picked
from models.messages import Message
from models.roles import AdminPermission, Role, Scope
from resolvers import adminlog, authlog
from resolvers.access import records
from resolvers.adminlog import Done
from resolvers.authlog import Event
from resolvers.context import Context, Needs, Viewer
from resolvers.messages import here
from resolvers.userselection import managed_one

SENT = "sent for the user"  # as the security log of the account calls it
LOGIN_AS = Needs(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.LOGIN_AS)


@asynccontextmanager
async def sending(ctx: Context, user_id: int | None, mutation: str) -> AsyncGenerator[Context]:
    """A context in which this account sends; the viewer's own by default.

    What others do for an account is written down where its owner can read it, too. They cannot
    read its mail or files by it: who wants to send those acts as the user. NotFound, Forbidden.
    """
    if user_id is None or user_id == ctx.viewer.user_id:
        yield ctx
        return
    ctx.viewer.require(LOGIN_AS)
    user = await managed_one(ctx, user_id)
    async with ctx.together():
        theirs = another(ctx, user_id)
        yield theirs
        async with ctx.write(user_id) as session:
            await adminlog.note(ctx, session, Done(mutation, "User", user_id, user.domain_id))
            await authlog.note(ctx, session, Event(SENT, user_id))
        if theirs.reached:
            ctx.reached = {**theirs.reached, **(ctx.reached or {})}


def another(ctx: Context, user_id: int) -> Context:
    """The same operation in the name of an account, good for sending alone."""
    scopes = frozenset({Scope.SUBMIT})
    return ctx.as_another(Viewer(user_id, Role.USER, scopes, actor_id=ctx.viewer.user_id))


async def owner_of(ctx: Context, message_id: int) -> int | None:
    """Whose a message is, where it is not the viewer's own but of an account they manage."""
    asked = select(*picked(Message, {"user_id"})).where(
        records(ctx, Message), here(), col(Message.id) == message_id
    )
    return next((int(row.user_id) for row in await ctx.read(asked)), None)
