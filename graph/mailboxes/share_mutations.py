"""Mutation that shares a mailbox, and the list of shared mailboxes."""

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import Mailbox, MailboxesPayload, mailboxes_payload
from graph.types import global_ids
from graph.types.access_grants import GIVES_ACCESS
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_access import OWN_OR_SHARED
from graph.types.references import MailboxRef, UserRef, mailbox_selector_from_ref, maybe_value
from graph.types.row_mapping import selected_columns
from models.mailboxes.shares import ShareRight
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Scope
from resolvers.mailboxes import shares
from resolvers.mailboxes.shares import (
    Grantee,
    SharedMailboxConditions,
    SharedMailboxListing,
)


@strawberry.input(description="Input of mailboxShareSet.")
class MailboxShareSetInput(Options):
    mailbox: MailboxRef = attribute_field(
        "Mailbox to share. A mailbox of another user is named by its ID. The signed-in user needs "
        "the right ADMIN there, except to end the own share."
    )
    user: UserRef = attribute_field(
        "User who gets the rights: of the owner's domain, with existing rights on the mailbox, or "
        "whom the caller can see as an administrator. If MERGANSER_SHARE_ACROSS_DOMAINS is on: any "
        "user. Others are NOT_FOUND, and the owner is an error."
    )
    rights: list[ShareRight] = attribute_field(
        "All rights that `user` has from now on; they replace the previous ones. Every right "
        "includes LOOKUP. An empty list ends the share. An administrator who acts as the "
        "signed-in user (`userImpersonate`) can only end shares.",
        metadata=GIVES_ACCESS,
    )


@strawberry.input(description="Conditions on mailboxes that others share. All must hold.")
class SharedMailboxFilter(ConditionsInput):
    owner: UserRef | None = attribute_field(
        "Returns only mailboxes of this user. The list is empty if the user shares none.",
        default=UNSET,
    )
    query: str | None = attribute_field(
        "Returns only mailboxes with this text in the path (case is ignored). At most 1,000 "
        "characters.",
        default=UNSET,
    )

    async def resolve_conditions_or_match_nothing(self, info: Info) -> SharedMailboxConditions:
        """Convert the filter to conditions of the resolvers. An unknown owner shares nothing.

        Raises InvalidInput if the ID is not one of a user.
        """
        owner_id = None
        if self.owner:
            owner = _grantee_from_ref(self.owner, path="filter")
            owner_id = (
                await info.context.load(
                    shares.load_owner_ids_by_name, owner.username_or_address or ""
                )
                if owner.user_id is None
                else owner.user_id
            )
        return SharedMailboxConditions(owner_id=owner_id, path_part=self.query or None)


async def load_shared_mailbox_page(
    info: Info,
    user_id: int,
    filter: SharedMailboxFilter | None,
    page_arguments: PageArguments,
) -> Connection[Mailbox]:
    """Load a page of the mailboxes that other users share with an account.

    Raises InvalidInput if the filter has a malformed ID or a text that is too long.
    """
    ctx = info.context
    conditions = (
        await filter.resolve_conditions_or_match_nothing(info)
        if filter
        else SharedMailboxConditions()
    )
    list_ordering = ordering_name(shares.CURSOR_KIND, conditions if filter else None)
    requested_page = page_request(list_ordering, *page_arguments)
    columns = selected_columns(info, Mailbox)
    page_key = SharedMailboxListing(user_id, requested_page, columns, conditions)
    return await connection_of_page(
        info,
        Mailbox,
        await ctx.load(shares.load_visible_shared_mailbox_pages, page_key),
        lambda row: Cursor(requested_page.ordering, row.owner_id, row.mailbox_id),
        lambda: ctx.load(shares.count_visible_shared_mailboxes, page_key),
    )


def _grantee_from_ref(user_ref: UserRef, *, path: str = "user") -> Grantee:
    """Return the user or owner of a share, by id, username or address.

    Raises InvalidInput if the ID is not one of a user.
    """
    if user_ref.id:
        return Grantee(global_ids.decode("User", user_ref.id.value, path=path))
    return Grantee(
        username_or_address=maybe_value(user_ref.username) or maybe_value(user_ref.address) or ""
    )


@strawberry.type
class SharingMutation:
    @mutation(
        "Shares a mailbox with another user, changes their rights, or ends the share (RFC 4314). "
        "The owner can give every right. A user with the right ADMIN can give their own rights, "
        "keep rights that the other user has already, and remove any. Such a user can't change "
        "their own rights, but everyone can end their own share. A mailbox has at most 100 "
        "shares, and at most 50 users share mailboxes with one user (LIMIT_REACHED). An "
        "administrator of the owner needs a share, too; what such an administrator changes is in "
        "the security log of the owner, who is notified.",
        scope=Scope.MAIL,
        access=OWN_OR_SHARED,
    )
    async def mailbox_share_set(self, info: Info, input: MailboxShareSetInput) -> MailboxesPayload:
        mailbox, grantee = mailbox_selector_from_ref(input.mailbox), _grantee_from_ref(input.user)
        return mailboxes_payload(
            await shares.set_or_end_share(info.context, mailbox, grantee, input.rights)
        )
