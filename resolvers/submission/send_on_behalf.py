"""Send for another user: administrators can do so in the name of accounts that they manage."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import select
from sqlmodel import col

from models.messages.tables import Message
from models.store.columns import picked
from models.users.roles import AdminPermission, Role, Scope
from resolvers.access import managed_apart
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import security_log
from resolvers.auth.security_log import Event
from resolvers.context import Context, Needs, Viewer
from resolvers.messages.loaders import here
from resolvers.users.selection import managed_one

SENT = "sent for the user"  # in the security log of the account
LOGIN_AS = Needs(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.LOGIN_AS)


SUBMIT = frozenset({Scope.SUBMIT})


@asynccontextmanager
async def sending(
    ctx: Context, user_id: int | None, mutation: str, scopes: frozenset[Scope] = SUBMIT
) -> AsyncGenerator[Context]:
    """Return a context in which this account sends; by default the viewer's own.

    What an administrator sends is recorded in the admin log and the account's security log.
    Without the scope MAIL_READ the context can't read mail or files. Raises NotFound, and
    Forbidden if the viewer may not act as the account.
    """
    if user_id is None or user_id == ctx.viewer.user_id:
        yield ctx
        return
    ctx.viewer.require(LOGIN_AS)
    user = await managed_one(ctx, user_id)
    async with ctx.together():
        theirs = another(ctx, user_id, scopes)
        yield theirs
        async with ctx.write(user_id) as session:
            await admin_log.note(ctx, session, Done(mutation, "User", user_id, user.domain_id))
            await security_log.note(ctx, session, Event(SENT, user_id))
        if theirs.reached:
            ctx.reached = {**theirs.reached, **(ctx.reached or {})}


def another(ctx: Context, user_id: int, scopes: frozenset[Scope] = SUBMIT) -> Context:
    """Return the same operation in the name of an account, by default to send only."""
    return ctx.as_another(Viewer(user_id, Role.USER, scopes, actor_id=ctx.viewer.user_id))


async def owner_of(ctx: Context, message_id: int) -> int | None:
    """Return the owner of a message that the viewer manages.

    Returns None if the viewer does not manage the owner, or the message is shared with the viewer.
    """
    asked = select(*picked(Message, {"user_id"})).where(
        managed_apart(ctx, Message), here(), col(Message.id) == message_id
    )
    return next((int(row.user_id) for row in await ctx.read(asked)), None)
