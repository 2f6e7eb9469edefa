"""GraphQL types, queries and mutations of legal holds."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.http import download_urls
from graph.messages.mime_parts import MailAddress
from graph.messages.types import Message
from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, id_from_ref, ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import (
    UserRef,
    load_named_user_id,
    load_user_or_viewer,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import URL, BigInt, ByteSize, IPAddress
from models.admin.legal_holds import CopyOrigin, LegalHoldAccessAction
from models.admin.tasks import TaskState
from models.errors import require_found
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from resolvers.admin import legal_holds
from resolvers.admin.audit_log import NO_USER_ID
from resolvers.admin.legal_holds import ACCESSES, COPIES, NEWEST, LegalHoldPageKey, NewLegalHold
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

ADMIN_GUARD = Auth(role=Role.ADMIN, scope=Scope.READ)
MESSAGE_FIELDS = ("from_", "to", "cc", "bcc", "preview", "has_attachments")


@strawberry.type(
    description="Copy of a message that a legal hold has made.", directives=[ADMIN_GUARD]
)
class HeldCopy(NodeView):
    position: BigInt = attribute_field("Position in the hash chain of the legal hold, from 1.")
    origin: CopyOrigin = attribute_field("Reason why the message was copied.")
    mailbox_path: str | None = attribute_field(
        "Path of the mailbox of the message, or of the mailbox that it was deleted from. Null: "
        "none."
    )
    from_: MailAddress | None = attribute_field(
        "Author of the message, from the header field From. Null: there is none.", name="from"
    )
    to: list[MailAddress] = attribute_field("Addresses in the header field To.")
    cc: list[MailAddress] = attribute_field("Addresses in the header field Cc.")
    bcc: list[MailAddress] = attribute_field("Addresses in the header field Bcc.")
    subject: str = attribute_field("Decoded subject. Empty if there is none.")
    date: datetime | None = attribute_field("Time in the header field Date. Null: there is none.")
    received_at: datetime = attribute_field("Time when the message arrived.")
    size: ByteSize = attribute_field("Size of the message in bytes.")
    preview: str = attribute_field("Beginning of the text, at most 128 bytes.")
    has_attachments: bool = attribute_field("True if the message has attachments.")
    attachment_count: int = attribute_field("Number of attachments.")
    envelope_from: str | None = attribute_field("Envelope sender (MAIL FROM). Null: unknown.")
    envelope_to: list[str] = attribute_field("Envelope recipients (RCPT TO). Empty: unknown.")
    sha256: str = attribute_field("SHA-256 of the whole message, 64 hexadecimal digits.")
    copied_at: datetime = attribute_field("Time when the copy was made.")
    chain_hash: str = attribute_field(
        "Hash of this copy in the hash chain of the legal hold: SHA-256 of its fields and of the "
        "chain hash of the copy before it."
    )

    load_batch = staticmethod(legal_holds.load_copies_by_id_and_log_access)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **{name: Message.derived_fields[name] for name in MESSAGE_FIELDS},
        "id": global_id_field("HeldCopy"),
        "sha256": DerivedField(("digest",), lambda digest: digest),
        "chain_hash": DerivedField(("hash",), lambda value: value),
    }


@strawberry.type(
    description="Access of an administrator to the copies of a legal hold.",
    directives=[ADMIN_GUARD],
)
class LegalHoldAccess(NodeView):
    at: datetime = attribute_field("Time of the access.")
    actor: str = attribute_field("Username or name of the API key that read the copies.")
    role: Role = attribute_field("Role of the actor at that time.")
    ip: IPAddress | None = attribute_field("IP address of the actor.")
    action: LegalHoldAccessAction = attribute_field("Kind of the access.")

    load_batch = staticmethod(legal_holds.load_visible_accesses_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("LegalHoldAccess")
    }


@strawberry.type(
    description="Legal hold: copies of the mail of an account in a period, which the account "
    "can't see, change or delete.",
    directives=[ADMIN_GUARD],
)
class LegalHold(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Account whose mail is copied. Null: the account was deleted. The legal hold "
        "continues without it.",
    )
    username: str = attribute_field("Username of the account when the legal hold was created.")
    starts_at: datetime | None = attribute_field(
        "Mail that arrived at or after this time is copied. Null: no lower limit."
    )
    ends_at: datetime | None = attribute_field(
        "Mail that arrives before this time is copied. Null: until the legal hold ends."
    )
    expires_at: datetime = attribute_field("End of retention: the copies are deleted at this time.")
    reason: str | None = attribute_field("Reason for the legal hold, as given at its creation.")
    created_at: datetime = attribute_field("Time when the legal hold was created.")
    created_by: str = attribute_field(
        "Username or name of the API key that created the legal hold."
    )
    ended_at: datetime | None = attribute_field(
        "Time when the legal hold ended and its copies became unavailable. Null: it is active."
    )
    message_count: BigInt = attribute_field("Number of copies.")
    size: ByteSize = attribute_field("Size of all copies in bytes.")
    state: TaskState = link(
        "id",
        legal_holds.load_copy_task_states_by_legal_hold,
        lambda state: state,
        description="State of the task that copies the messages stored before the legal hold.",
    )

    load_batch = staticmethod(legal_holds.load_visible_legal_holds_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("LegalHold"),
        "message_count": DerivedField(("copies",), lambda copies: copies),
    }

    @field("Copies in the order in which they were made. Each access is logged in `accessLog`.")
    async def messages(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[HeldCopy]:
        page_key = self._page_key(info, HeldCopy, COPIES, first, after, last, before)
        return await connection_of_page(
            info,
            HeldCopy,
            await info.context.load(legal_holds.load_copy_pages_and_log_access, page_key),
            lambda row: Cursor(COPIES, row.position, row.id),
            lambda: info.context.load(legal_holds.count_copies_by_legal_hold, page_key),
        )

    @field("Accesses to the copies of the legal hold, newest first.")
    async def access_log(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[LegalHoldAccess]:
        page_key = self._page_key(info, LegalHoldAccess, ACCESSES, first, after, last, before)
        return await connection_of_page(
            info,
            LegalHoldAccess,
            await info.context.load(legal_holds.load_access_pages_by_legal_hold, page_key),
            lambda row: Cursor(ACCESSES, row.at, row.id),
            lambda: info.context.load(legal_holds.count_accesses_by_legal_hold, page_key),
        )

    def _page_key(
        self, info: Info, item_type: type[NodeView], list_ordering: str, *page_arguments: Any
    ) -> LegalHoldPageKey:
        """Return the key of a page of this legal hold's copies or accesses.

        `page_arguments` are: first, after, last, before.
        """
        requested_page = page_request(list_ordering, *page_arguments)
        return LegalHoldPageKey(self.row.id, requested_page, selected_columns(info, item_type))

    @field("URL of an mbox file with all copies. Each download is logged in `accessLog`.")
    def export_url(self, info: Info) -> URL:
        path = download_urls.legal_hold_path(self.row.id)
        return download_urls.sign_checked_path(info, path, info.context.viewer.user_id)

    @field(
        "Position of the first copy that is missing or was changed, found by checking the hash "
        "chain. Null: the chain is intact, or the legal hold has ended.",
        "copies",
        "head",
        "ended_at",
        cost=1000,
    )
    async def broken_position(self, info: Info) -> BigInt | None:
        position = await legal_holds.find_broken_position(info.context, self.row)
        return None if position is None else BigInt(position)


@strawberry.input(one_of=True, description="Reference to one legal hold.")
class LegalHoldRef(ObjectRef):
    pass


@strawberry.input(description="Conditions for legal holds.")
class LegalHoldFilter(ConditionsInput):
    user: UserRef | None = attribute_field(
        "Legal holds of this account. A deleted account can only be referred to by its ID.",
        default=UNSET,
    )


@strawberry.input(description="Input of legalHoldEnd.")
class LegalHoldEndInput(Options):
    legal_holds: list[LegalHoldRef] = attribute_field("Legal holds to end.")


@strawberry.input(description="Input of legalHoldCreate.")
class LegalHoldCreateInput(Options):
    user: UserRef = attribute_field("Account whose mail is copied. It can't be the caller's.")
    starts_at: datetime | None = attribute_field(
        "Copies mail that arrived at or after this time. Default: no lower limit.", default=UNSET
    )
    ends_at: datetime | None = attribute_field(
        "Copies mail that arrives before this time. Default: until the legal hold ends.",
        default=UNSET,
    )
    expires_at: datetime = attribute_field(
        "End of retention, in the future and at most 36,500 days ahead. The copies are deleted at "
        "this time."
    )
    reason: str | None = attribute_field(
        "Reason for the legal hold, at most 1,000 characters.", default=UNSET
    )


@strawberry.type(description="Payload of legalHoldCreate.")
class LegalHoldPayload(MutationPayload):
    legal_hold: LegalHold | None = attribute_field("Created legal hold.", default=None)


@strawberry.type
class LegalHoldQuery:
    @query(
        "Returns a legal hold. An ADMIN can't see legal holds of the own account.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def legal_hold(self, info: Info, by: LegalHoldRef) -> LegalHold | None:
        key = id_from_ref(by, "by")
        return LegalHold.from_row_or_none(
            await info.context.load(legal_holds.load_visible_legal_holds_by_id, key)
        )

    @query(
        "Returns legal holds, newest first. An ADMIN can't see legal holds of the own account.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def legal_holds(
        self,
        info: Info,
        filter: LegalHoldFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[LegalHold]:
        ctx, user_id = info.context, await _held_user_id(info, filter.user if filter else None)
        requested_page = page_request(ordering_name(NEWEST, user_id), first, after, last, before)
        return await connection_of_page(
            info,
            LegalHold,
            await legal_holds.read_legal_hold_page(
                ctx, user_id, requested_page, selected_columns(info, LegalHold)
            ),
            lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
            lambda: legal_holds.count_legal_holds(ctx, user_id),
        )


async def _held_user_id(info: Info, user_ref: UserRef | None) -> int | None:
    """Return the id of the audited account, or None if no account is named.

    A deleted account can only be named by its id.
    """
    if not user_ref:
        return None
    if user_ref.id:
        return global_ids.decode("User", user_ref.id.value, path=("filter", "user", "id"))
    row = await load_user_or_viewer(info, user_ref)
    return row.id if row else NO_USER_ID


@strawberry.type
class LegalHoldMutation:
    @mutation(
        "Creates a legal hold, which copies stored, deleted and future mail of an account. The "
        "account is not notified. At most 10 legal holds of an account are active.",
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def legal_hold_create(self, info: Info, input: LegalHoldCreateInput) -> LegalHoldPayload:
        new = NewLegalHold(
            require_found(await load_named_user_id(info, input.user), path=["user"]),
            input.expires_at,
            input.starts_at or None,
            input.ends_at or None,
            input.reason or None,
        )
        key = await legal_holds.create_legal_hold(info.context, new)
        return LegalHoldPayload(
            legal_hold=LegalHold.from_row_or_none(
                await info.context.load(legal_holds.load_visible_legal_holds_by_id, key)
            )
        )

    @mutation(
        "Ends legal holds before their expiry and deletes their copies, all or none.",
        role=Role.ROOT,
        scope=Scope.FULL,
    )
    async def legal_hold_end(self, info: Info, input: LegalHoldEndInput) -> DeletePayload:
        keys = ids_from_refs(info, input.legal_holds, "legalHolds")
        await legal_holds.end_legal_holds_and_mark_removed(info.context, keys)
        return DeletePayload.of_keys("LegalHold", keys)
