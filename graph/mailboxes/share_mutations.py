"""Sharing folders, as the API does it."""

from typing import Any

import strawberry

from graph.mailboxes.types import Mailbox, MailboxesPayload, payload
from graph.types import global_ids
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import Options, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import MailboxRef, UserRef, given, named
from graph.types.row_mapping import columns
from models.mailboxes.shares import ShareRight
from models.store.keyset_pages import Cursor
from models.users.roles import Scope
from resolvers.mailboxes import shares
from resolvers.mailboxes.shares import Grantee, OfUser


@strawberry.input(description="Input of mailboxShareSet.")
class MailboxShareSetInput(Options):
    mailbox: MailboxRef = leaf("The folder; another's, in which one has ADMIN, by its id.")
    user: UserRef = leaf("With whom; outside of the owner's domain if the platform lets.")
    rights: list[ShareRight] = leaf("All of them; none = no longer shared.")


async def shared_page(
    info: Info, user_id: int, page: tuple[Any, Any, Any, Any]
) -> Connection[Mailbox]:
    """A page of the folders that others share with this account."""
    ctx, ask = info.context, page_asked(shares.ORDER, *page)
    listing = OfUser(user_id, ask, columns(info, Mailbox))
    return await connected(
        info,
        Mailbox,
        await ctx.load(shares.pages, listing),
        lambda row: Cursor(ask.ordering, row.owner_id, row.mailbox_id),
        lambda: ctx.load(shares.counts, listing),
    )


def _grantee(ref: UserRef) -> Grantee:
    if ref.id:
        return Grantee(global_ids.decode("User", ref.id.value, path="user"))
    return Grantee(name=given(ref.username) or given(ref.address) or "")


@strawberry.type
class SharingMutation:
    @mutation(
        "Let another account use a folder: LOOKUP goes with any right, no rights = no longer "
        "shared. Whoever has ADMIN gives what they have; anybody may give up the own share.",
        scope=Scope.MAIL,
    )
    async def mailbox_share_set(self, info: Info, input: MailboxShareSetInput) -> MailboxesPayload:
        box, who = named(input.mailbox), _grantee(input.user)
        return payload(await shares.put(info.context, box, who, input.rights))
