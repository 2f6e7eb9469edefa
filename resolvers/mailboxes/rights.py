"""The viewer's rights in mailboxes. They are read for each request."""

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import col

from models.errors import OverQuota
from models.mailboxes.shares import ALL, MailboxShare, Rights, ShareRight, rights_of
from models.store.columns import Picked, picked
from models.store.prepared_statements import number, prepared
from resolvers.context import Context

NONE: Rights = frozenset()


async def rights(ctx: Context, keys: list[tuple[int, int]]) -> list[Rights]:
    """Load the viewer's rights in these mailboxes, in this order.

    Keys are owner ID and mailbox ID.
    """
    mine = ctx.viewer.user_id
    others = {mailbox for owner, mailbox in keys if owner != mine}
    shares = await of_boxes(ctx, others) if others and ctx.viewer.reach.shared else {}
    return [ALL if owner == mine and mine else shares.get(mailbox, NONE) for owner, mailbox in keys]


async def of_boxes(ctx: Context, boxes: Collection[int]) -> Mapping[int, Rights]:
    """Load the viewer's rights in mailboxes of others, by mailbox ID.

    Mailboxes without a share are missing.
    """
    statement = select(*picked(MailboxShare)).where(
        col(MailboxShare.user_id) == ctx.viewer.user_id, col(MailboxShare.mailbox_id).in_(boxes)
    )
    return {row.mailbox_id: rights_of(row.rights) for row in await ctx.read(statement)}


async def all_of(ctx: Context) -> list[Picked]:
    """Load all shares with the viewer."""
    return list(await ctx.find(_all()))


@prepared
def _all() -> Select[*tuple[Any, ...]]:
    return select(*picked(MailboxShare)).where(col(MailboxShare.user_id) == number("viewer"))


def ordered(given: Rights) -> list[ShareRight]:
    """Sort rights in the order of their definition."""
    return [right for right in ShareRight if right in given]


@contextmanager
def discreet(ctx: Context, owner: int) -> Generator[None]:
    """Remove the figures from OverQuota if the viewer is not the owner of the account."""
    try:
        yield
    except OverQuota:
        if owner == ctx.viewer.user_id:
            raise
        raise OverQuota("the owner of the folder has no room for it") from None
