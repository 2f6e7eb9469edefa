"""What the viewer may do in folders, as it is at this moment."""

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
    """The viewer's rights in these folders, each named by its owner and its id, in this order."""
    mine = ctx.viewer.user_id
    others = {box for owner, box in keys if owner != mine}
    shares = await of_boxes(ctx, others) if others and ctx.viewer.reach.shared else {}
    return [ALL if owner == mine and mine else shares.get(box, NONE) for owner, box in keys]


async def of_boxes(ctx: Context, boxes: Collection[int]) -> Mapping[int, Rights]:
    """The viewer's rights in others' folders, by the ids of those that are shared with them."""
    asked = select(*picked(MailboxShare)).where(
        col(MailboxShare.user_id) == ctx.viewer.user_id, col(MailboxShare.mailbox_id).in_(boxes)
    )
    return {row.mailbox_id: rights_of(row.rights) for row in await ctx.read(asked)}


async def all_of(ctx: Context) -> list[Picked]:
    """All that is shared with the viewer."""
    return list(await ctx.find(_all()))


@prepared
def _all() -> Select[*tuple[Any, ...]]:
    return select(*picked(MailboxShare)).where(col(MailboxShare.user_id) == number("viewer"))


def ordered(given: Rights) -> list[ShareRight]:
    """Rights in the order of their definition."""
    return [right for right in ShareRight if right in given]


@contextmanager
def discreet(ctx: Context, owner: int) -> Generator[None]:
    """What goes into this account fits, or not: how full it is, its owner alone is told."""
    try:
        yield
    except OverQuota:
        if owner == ctx.viewer.user_id:
            raise
        raise OverQuota("the owner of the folder has no room for it") from None
