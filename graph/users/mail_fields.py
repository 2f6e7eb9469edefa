"""Fields of users about their mailboxes, messages, filters and files."""

from typing import Annotated

import strawberry
from strawberry import UNSET

from graph.autoreply.types import Autoreply
from graph.connectors.types import Connector, load_connector_page
from graph.files.types import File, FileFilter, authorize_and_load_file_page
from graph.filters.inputs import FilterFilter
from graph.filters.sieve_scripts import SieveScript, find_script_by_name, load_script_page
from graph.filters.types import Filter, load_filter_page
from graph.mailboxes.queries import MailboxFilter, load_mailbox_totals, load_mailbox_tree_page
from graph.mailboxes.share_mutations import SharedMailboxFilter, load_shared_mailbox_page
from graph.mailboxes.types import Mailbox, MailboxTotals
from graph.messages.deleted_messages import (
    DeletedMessage,
    DeletedMessageOrder,
    load_deleted_message_page,
)
from graph.messages.filter_inputs import MessageFilter, MessageListRequest
from graph.messages.labels import Label
from graph.messages.message_order import MessageOrder
from graph.messages.types import MessageConnection, load_message_page
from graph.search.saved_searches import SavedSearch
from graph.spam.quarantine import QuarantineItem, UserQuarantineFilter, load_quarantine_page
from graph.submission.identities import Identity, load_identity_page
from graph.submission.types import Submission, SubmissionFilter, authorize_and_load_submission_page
from graph.types.connections import Connection, PageArguments
from graph.types.fields import Info, field
from graph.types.object_access import MANAGED, OVERSEEN, OWN
from graph.types.references import (
    MailboxRef,
    mailbox_selector_from_ref,
    require_no_user_condition,
)
from graph.types.row_mapping import NodeView, objects_from_rows_with_links
from models.users.roles import AdminPermission, Scope, UserPermission
from resolvers.autoreply import autoreplies
from resolvers.connectors.loaders import ConnectorOrder
from resolvers.files.stored_files import FileOrder
from resolvers.filters.loaders import FilterOrder
from resolvers.filters.sieve_scripts import SieveScriptOrder
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import subscriptions
from resolvers.mailboxes.listing import TREE_PAGE_SIZES
from resolvers.messages import labels
from resolvers.search import saved_searches
from resolvers.spam.quarantine import QuarantineOrder
from resolvers.submission.identities.pages import IdentityOrder
from resolvers.submission.loaders import SubmissionOrder


@strawberry.type(description="Mail of a user.")
class UserMailFields(NodeView):
    """Base of User with the fields about mailboxes, messages, filters and files."""

    @field(
        "Identities, the sender addresses that the account can use.",
        scope=Scope.MAIL_READ,
        access=OVERSEEN,
    )
    async def identities(
        self,
        info: Info,
        order_by: IdentityOrder = IdentityOrder.ADDRESS_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Identity]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_identity_page(info, self.row.id, order_by, page_arguments)

    @field(
        "Filters of the account, also disabled ones.",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.FILTERS),
    )
    async def filters(
        self,
        info: Info,
        filter: FilterFilter | None = UNSET,
        order_by: FilterOrder = FilterOrder.POSITION_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Filter]:
        page_arguments = PageArguments(first, after, last, before)
        conditions = None
        if filter:
            require_no_user_condition(filter.user, "filters")
            conditions = await filter.resolve_conditions_or_match_nothing(info)
        return await load_filter_page(info, self.row.id, conditions, order_by, page_arguments)

    @field(
        "Connectors that fetch mail from other servers into the account, without those of a "
        "one-time `mailImport`.",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.CONNECTORS),
    )
    async def connectors(
        self,
        info: Info,
        order_by: ConnectorOrder = ConnectorOrder.CREATED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Connector]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_connector_page(info, self.row.id, order_by, page_arguments)

    @field(
        "Vacation reply of the account. If none was set, its `createdAt` is null. Null for an "
        "account that the caller can't use this field for.",
        scope=Scope.READ,
        access=OVERSEEN,
    )
    async def autoreply(self, info: Info) -> Autoreply | None:
        return Autoreply.from_row_or_none(
            await info.context.load(autoreplies.load_visible_autoreplies_by_user, self.row.id)
        )

    @field(
        "Sieve scripts of the account.",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.FILTERS),
    )
    async def sieve_scripts(
        self,
        info: Info,
        order_by: SieveScriptOrder = SieveScriptOrder.NAME_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[SieveScript]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_script_page(info, self.row.id, order_by, page_arguments)

    @field(
        "Sieve script of the account with this name. Null if there is none, or the caller can't "
        "see it.",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.FILTERS),
    )
    async def sieve_script(
        self,
        info: Info,
        name: Annotated[str, strawberry.argument(description="Name of the script. Case matters.")],
    ) -> SieveScript | None:
        return await find_script_by_name(info, self.row.id, name)

    @field(
        "Quarantined messages of the account.",
        scope=Scope.READ,
        user_permission=UserPermission.QUARANTINE,
        access=OVERSEEN.with_permissions(AdminPermission.QUARANTINE),
    )
    async def quarantine(
        self,
        info: Info,
        filter: UserQuarantineFilter | None = UNSET,
        order_by: QuarantineOrder = QuarantineOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[QuarantineItem]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_quarantine_page(info, self.row.id, filter, order_by, page_arguments)

    @field(
        "Mailboxes of the account in tree order: INBOX and its children first, then by path. "
        "Hidden mailboxes are listed only if the filter says so.",
        scope=Scope.MAIL_READ,
        default_page_size=TREE_PAGE_SIZES.default,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailboxes(
        self,
        info: Info,
        filter: MailboxFilter | None = UNSET,
        first: Annotated[
            int | None,
            strawberry.argument(
                description="Returns at most this number of mailboxes from the beginning of the "
                "list, 0 to 1,500. Default: 250."
            ),
        ] = UNSET,
        after: str | None = UNSET,
        last: Annotated[
            int | None,
            strawberry.argument(
                description="Returns at most this number of mailboxes from the end of the list, "
                "0 to 1,500. Not allowed with `first`."
            ),
        ] = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Mailbox]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_mailbox_tree_page(info, self.row.id, filter or None, page_arguments)

    @field(
        "Mailboxes that other users share with the account, ordered by owner.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def shared_mailboxes(
        self,
        info: Info,
        filter: SharedMailboxFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Mailbox]:
        return await load_shared_mailbox_page(
            info, self.row.id, filter or None, PageArguments(first, after, last, before)
        )

    @field(
        "Totals of the mailboxes that `mailboxes` lists with the same filter. Without a filter, "
        "hidden mailboxes are not counted.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailbox_totals(
        self, info: Info, filter: MailboxFilter | None = UNSET
    ) -> MailboxTotals:
        return await load_mailbox_totals(info, self.row.id, filter or None)

    @field(
        "Mailbox paths that are subscribed (RFC 9051) although no mailbox has them, sorted: by "
        "default at most 1,500.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def subscribed_paths(self, info: Info) -> list[str]:
        return sorted(
            await info.context.load(
                subscriptions.load_visible_folderless_subscriptions, self.row.id
            )
        )

    @field(
        "Mailbox of the account, also a hidden one. Null if it does not exist, or the caller "
        "can't see it.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailbox(self, info: Info, by: MailboxRef) -> Mailbox | None:
        row = await info.context.load(
            mailbox_loaders.load_visible_by_selectors,
            (self.row.id, mailbox_selector_from_ref(by, path="by")),
        )
        return Mailbox.from_row_or_none(row)

    @field(
        "Messages in all mailboxes of the account, also in Junk and Trash. Deleted messages that "
        "can be restored are left out.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def messages(
        self,
        info: Info,
        filter: MessageFilter | None = UNSET,
        order_by: MessageOrder = MessageOrder.RECEIVED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> MessageConnection:
        request = MessageListRequest(filter, order_by, PageArguments(first, after, last, before))
        return await load_message_page(info, request, user_ids=[self.row.id])

    @field(
        "Deleted messages of the account that can still be restored.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def deleted_messages(
        self,
        info: Info,
        filter: MessageFilter | None = UNSET,
        order_by: DeletedMessageOrder = DeletedMessageOrder.DELETED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[DeletedMessage]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_deleted_message_page(info, self.row.id, filter, order_by, page_arguments)

    @field(
        "Labels of the signed-in user, ordered by name: at most 250. Empty for other accounts.",
        scope=Scope.MAIL_READ,
        access=OWN,
    )
    async def labels(self, info: Info) -> list[Label]:
        rows = await info.context.load(labels.load_own_labels_by_user, self.row.id)
        return await objects_from_rows_with_links(info, Label, rows)

    @field(
        "Saved searches of the signed-in user, ordered by name: at most 100. Empty for other "
        "accounts.",
        scope=Scope.MAIL_READ,
        access=OWN,
    )
    async def saved_searches(self, info: Info) -> list[SavedSearch]:
        rows = await info.context.load(
            saved_searches.load_visible_saved_searches_by_user, self.row.id
        )
        return await objects_from_rows_with_links(info, SavedSearch, rows)

    @field(
        "Sent and scheduled messages of the account with their delivery states. A caller who "
        "can't use this field for the account gets the error FORBIDDEN.",
        checks_conditions=False,
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def submissions(
        self,
        info: Info,
        filter: SubmissionFilter | None = UNSET,
        order_by: SubmissionOrder = SubmissionOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Submission]:
        page_arguments = PageArguments(first, after, last, before)
        return await authorize_and_load_submission_page(
            info, self.row.id, filter or None, order_by, page_arguments
        )

    @field(
        "Stored files of the account. A caller who can't use this field for the account gets the "
        "error FORBIDDEN. For another account, only a ROOT can filter them by name.",
        checks_conditions=False,
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def files(
        self,
        info: Info,
        filter: FileFilter | None = UNSET,
        order_by: FileOrder = FileOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[File]:
        page_arguments = PageArguments(first, after, last, before)
        return await authorize_and_load_file_page(
            info, self.row.id, filter or None, order_by, page_arguments
        )
