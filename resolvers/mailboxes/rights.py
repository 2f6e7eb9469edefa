"""The viewer's rights in mailboxes. They are read for each request."""

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import col

from models.errors import OverQuota
from models.mailboxes.shares import ALL_RIGHTS, MailboxShare, Rights, ShareRight, decode_rights
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import integer_parameter, prepare_cached
from resolvers.context import Context

NO_RIGHTS: Rights = frozenset()


async def load_viewer_rights(
    ctx: Context, owner_and_mailbox_ids: list[tuple[int, int]]
) -> list[Rights]:
    """Load the viewer's rights in these mailboxes, in this order.

    Keys are owner ID and mailbox ID.
    """
    viewer_id = ctx.viewer.user_id
    foreign_mailbox_ids = {
        mailbox for owner, mailbox in owner_and_mailbox_ids if owner != viewer_id
    }
    shares = (
        await load_rights_in_shared_mailboxes(ctx, foreign_mailbox_ids)
        if foreign_mailbox_ids and ctx.viewer.share_visibility.has_shared_mailboxes
        else {}
    )
    return [
        ALL_RIGHTS if owner == viewer_id and viewer_id else shares.get(mailbox, NO_RIGHTS)
        for owner, mailbox in owner_and_mailbox_ids
    ]


async def load_rights_in_shared_mailboxes(
    ctx: Context, mailbox_ids: Collection[int]
) -> Mapping[int, Rights]:
    """Load the viewer's rights in mailboxes of others, by mailbox ID.

    Mailboxes without a share are missing.
    """
    statement = select(*select_columns(MailboxShare)).where(
        col(MailboxShare.user_id) == ctx.viewer.user_id,
        col(MailboxShare.mailbox_id).in_(mailbox_ids),
    )
    return {row.mailbox_id: decode_rights(row.rights) for row in await ctx.read(statement)}


async def load_shares_with_viewer(ctx: Context) -> list[ColumnRow]:
    """Load all shares with the viewer."""
    return list(await ctx.read_prepared(_shares_with_viewer_query()))


@prepare_cached
def _shares_with_viewer_query() -> Select[*tuple[Any, ...]]:
    return select(*select_columns(MailboxShare)).where(
        col(MailboxShare.user_id) == integer_parameter("viewer")
    )


def sorted_rights(rights: Rights) -> list[ShareRight]:
    """Sort rights in the order of their definition."""
    return [right for right in ShareRight if right in rights]


@contextmanager
def hide_quota_figures_from_others(ctx: Context, owner_id: int) -> Generator[None]:
    """Replace OverQuota by one without figures if the viewer does not own the account."""
    try:
        yield
    except OverQuota:
        if owner_id == ctx.viewer.user_id:
            raise
        raise OverQuota("The message exceeds the quota of the mailbox's owner.") from None
