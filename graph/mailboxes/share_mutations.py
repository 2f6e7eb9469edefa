"""Mutation that shares a mailbox, and the list of shared mailboxes."""

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
    """Load a page of the mailboxes that other users share with an account.

    `page_arguments` are: first, after, last, before.
    """
    ctx, requested_page = info.context, page_asked(shares.ORDER, *page)
    page_key = OfUser(user_id, requested_page, columns(info, Mailbox))
    return await connected(
        info,
        Mailbox,
        await ctx.load(shares.pages, page_key),
        lambda row: Cursor(requested_page.ordering, row.owner_id, row.mailbox_id),
        lambda: ctx.load(shares.counts, page_key),
    )


def _grantee(ref: UserRef) -> Grantee:
    """Return the user to share with, by id, username or address.

    Raises Invalid if the ID is not one of a user.
    """
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
        mailbox, grantee = named(input.mailbox), _grantee(input.user)
        return payload(await shares.put(info.context, mailbox, grantee, input.rights))
