"""GraphQL types, queries and mutations of legal holds."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.http import download_urls
from graph.messages.mail_summary import MailSummary
from graph.messages.types import Message
from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.object_references import ObjectRef, id_from_ref, ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import (
    UserRef,
    load_visible_user,
    optional_tuple,
    require_visible_user_id_if_named,
    value_or_none,
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
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.admin import legal_holds
from resolvers.admin.audit_log import NO_USER_ID
from resolvers.admin.legal_hold_conditions import (
    HeldCopyConditions,
    HeldCopyPageKey,
    LegalHoldAccessConditions,
    LegalHoldAccessPageKey,
)
from resolvers.admin.legal_holds import (
    HeldCopyOrder,
    LegalHoldAccessOrder,
    LegalHoldOrder,
    NewLegalHold,
)
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

ADMIN_GUARD = Auth(role=Role.ADMIN, scope=Scope.READ)
MESSAGE_FIELDS = ("from_", "to", "cc", "bcc", "preview", "has_attachments")


@strawberry.input(
    description=(
        "Conditions on copies of a legal hold. All must hold. They are tested on at most 10,000 "
        "copies for each page. The page can then have fewer copies than requested, or none, while "
        "`pageInfo.hasNextPage` is true."
    )
)
class HeldCopyFilter(ConditionsInput):
    from_: str | None = attribute_field(
        "Returns only copies with this text in the name or address of the author (first From "
        "address). Case is ignored. At most 1,000 characters; more are an error.",
        name="from",
        default=UNSET,
    )
    subject: str | None = attribute_field(
        "Returns only copies with this text in the subject (case is ignored). At most 1,000 "
        "characters; more are an error.",
        default=UNSET,
    )
    received_since: datetime | None = attribute_field(
        "Returns only copies of messages that were received at this time or later.", default=UNSET
    )
    received_before: datetime | None = attribute_field(
        "Returns only copies of messages that were received before this time.", default=UNSET
    )
    origins: list[CopyOrigin] | None = attribute_field(
        "Returns only copies that were made for one of these reasons. An empty list returns no "
        "copy.",
        default=UNSET,
    )

    def to_conditions(self) -> HeldCopyConditions:
        """Convert the filter to conditions of the resolvers."""
        return HeldCopyConditions(
            sender=value_or_none(self.from_),
            subject=value_or_none(self.subject),
            received_since=value_or_none(self.received_since),
            received_before=value_or_none(self.received_before),
            origins=optional_tuple(self.origins),
        )


@strawberry.input(
    description="Conditions on accesses to the copies of a legal hold. All must hold."
)
class LegalHoldAccessFilter(ConditionsInput):
    action: LegalHoldAccessAction | None = attribute_field(
        "Returns only accesses of this kind.", default=UNSET
    )
    since: datetime | None = attribute_field(
        "Returns only accesses at this time or later.", default=UNSET
    )
    before: datetime | None = attribute_field(
        "Returns only accesses before this time.", default=UNSET
    )

    def to_conditions(self) -> LegalHoldAccessConditions:
        """Convert the filter to conditions of the resolvers."""
        return LegalHoldAccessConditions(
            action=value_or_none(self.action),
            since=value_or_none(self.since),
            before=value_or_none(self.before),
        )


@strawberry.type(
    description="Copy of a message that a legal hold has made.", directives=[ADMIN_GUARD]
)
class HeldCopy(MailSummary):
    position: BigInt = attribute_field("Position in the hash chain of the legal hold, from 1.")
    origin: CopyOrigin = attribute_field("Reason why the message was copied.")
    mailbox_path: str | None = attribute_field(
        "Path, when the copy was made, of the mailbox with the message, or of the mailbox that it "
        "was deleted from. Null: the message was in no mailbox, as a quarantined message."
    )
    envelope_from: str | None = attribute_field("Envelope sender (MAIL FROM). Null: unknown.")
    envelope_to: list[str] = attribute_field(
        "Envelope recipients (RCPT TO). Empty: unknown. By default at most 400."
    )
    sha256: str = attribute_field("SHA-256 of the whole message, 64 hexadecimal digits.")
    copied_at: datetime = attribute_field("Time when the legal hold made the copy.")
    chain_hash: str = attribute_field(
        "Hash of this copy in the hash chain of the legal hold: SHA-256 of its fields and the "
        "previous copy's chain hash, 64 hexadecimal digits."
    )

    load_batch = staticmethod(legal_holds.load_copies_by_id_and_log_access)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **{name: Message.derived_fields[name] for name in MESSAGE_FIELDS},
        "id": global_id_field("HeldCopy"),
    }


@strawberry.type(
    description="Access of an administrator to the copies of a legal hold.",
    directives=[ADMIN_GUARD],
)
class LegalHoldAccess(NodeView):
    at: datetime = attribute_field("Time of the access.")
    actor: str = attribute_field(
        "Username, at that time, of the user who read the copies. `key NAME`: an API key of the "
        "platform. `operator`: the bootstrap key."
    )
    role: Role = attribute_field("Role of the actor at that time.")
    ip: IPAddress | None = attribute_field(
        "IP address that the copies were read from. Null: unknown."
    )
    action: LegalHoldAccessAction = attribute_field(
        "Kind of the access: reading copies or downloading them."
    )

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
        "The legal hold copies messages that were received at or after this time. It also copies "
        "new messages with an earlier date that this server stores at or after this time. Null: no "
        "lower limit."
    )
    ends_at: datetime | None = attribute_field(
        "Messages that were received before this time are copied. New messages with a later date "
        "are copied too if they are stored before this time. Null: until the legal hold ends."
    )
    expires_at: datetime = attribute_field(
        "End of the legal hold: from this time on nothing is copied, and the next clean-up deletes "
        "the copies. Until that clean-up the copies can be read."
    )
    reason: str | None = attribute_field(
        "Reason for the legal hold, as given at its creation. Null: none."
    )
    created_at: datetime = attribute_field("Time when the legal hold was created.")
    created_by: str = attribute_field(
        "Username, at that time, of the user who created the legal hold. `key NAME`: an API key of "
        "the platform. `operator`: the bootstrap key."
    )
    ended_at: datetime | None = attribute_field(
        "Time when the clean-up after `expiresAt` ended the legal hold and made its "
        "copies unavailable. Null: that has not happened."
    )
    message_count: BigInt = attribute_field(
        "Number of copies that the legal hold has made. The number stays after the copies were "
        "deleted."
    )
    size: ByteSize = attribute_field(
        "Size in bytes of all copies that the legal hold has made. The number stays after the "
        "copies were deleted."
    )
    state: TaskState = link(
        "id",
        legal_holds.load_copy_task_states_by_legal_hold,
        lambda state: state,
        description=(
            "State of the task that copies the messages stored before the legal hold. SUCCEEDED: "
            "all of them are copied. New messages are copied in every state, until the legal hold "
            "ends."
        ),
    )

    load_batch = staticmethod(legal_holds.load_visible_legal_holds_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("LegalHold"),
        "message_count": DerivedField(("copies",), lambda copies: copies),
    }

    @field(
        "Copies of messages that the legal hold has made. Empty after the legal hold has ended "
        "(`endedAt`). Each page that is read is logged in `accessLog`."
    )
    async def messages(
        self,
        info: Info,
        filter: HeldCopyFilter | None = UNSET,
        order_by: HeldCopyOrder = HeldCopyOrder.POSITION_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[HeldCopy]:
        list_order = legal_holds.COPY_ORDERS[order_by]
        conditions = filter.to_conditions() if filter else HeldCopyConditions()
        list_ordering = ordering_name(f"held-copies-{order_by}", conditions if filter else None)
        requested_page = page_request(list_ordering, first, after, last, before)
        columns = selected_columns(info, HeldCopy)
        page_key = HeldCopyPageKey(self.row.id, requested_page, list_order, columns, conditions)
        return await connection_of_page(
            info,
            HeldCopy,
            await info.context.load(legal_holds.load_copy_pages_and_log_access, page_key),
            lambda row: list_order.cursor_of_row(row, requested_page.ordering),
            lambda: info.context.load(legal_holds.count_visible_copies_by_legal_hold, page_key),
        )

    @field(
        "Accesses of administrators to the copies of the legal hold, also after the legal hold has "
        "ended."
    )
    async def access_log(
        self,
        info: Info,
        filter: LegalHoldAccessFilter | None = UNSET,
        order_by: LegalHoldAccessOrder = LegalHoldAccessOrder.AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[LegalHoldAccess]:
        list_order = legal_holds.ACCESS_ORDERS[order_by]
        conditions = filter.to_conditions() if filter else LegalHoldAccessConditions()
        list_ordering = ordering_name(
            f"legal-hold-accesses-{order_by}", conditions if filter else None
        )
        requested_page = page_request(list_ordering, first, after, last, before)
        columns = selected_columns(info, LegalHoldAccess)
        page_key = LegalHoldAccessPageKey(
            self.row.id, requested_page, list_order, columns, conditions
        )
        return await connection_of_page(
            info,
            LegalHoldAccess,
            await info.context.load(legal_holds.load_visible_access_pages_by_legal_hold, page_key),
            lambda row: list_order.cursor_of_row(row, requested_page.ordering),
            lambda: info.context.load(legal_holds.count_visible_accesses_by_legal_hold, page_key),
        )

    @field(
        "Signed download URL of an mbox file with all copies of the legal hold. It is valid for 15 "
        "to 20 minutes, and ends earlier with the caller's credential. Each download is logged in "
        "`accessLog`. After the legal hold has ended, the download fails."
    )
    def export_url(self, info: Info) -> URL:
        path = download_urls.legal_hold_path(self.row.id)
        return download_urls.sign_checked_path(info, path, info.context.viewer.user_id)

    @field(
        "Position, from 1, of the first copy of the legal hold whose record is missing or was "
        "changed, found by checking the hash chain. The contents of the copies are not read. "
        "Null: the chain is intact, or the legal hold has ended.",
        "copies",
        "head",
        "ended_at",
        cost=1000,
    )
    async def broken_position(self, info: Info) -> BigInt | None:
        position = await legal_holds.find_broken_chain_position(info.context, self.row)
        return None if position is None else BigInt(position)


@strawberry.input(one_of=True, description="Reference to one legal hold.")
class LegalHoldRef(ObjectRef):
    pass


@strawberry.input(description="Conditions on legal holds.")
class LegalHoldFilter(ConditionsInput):
    user: UserRef | None = attribute_field(
        "Returns only legal holds of this account. A deleted account can only be referred to by "
        "its ID. A username or address without a user whom the caller can see returns no legal "
        "hold.",
        default=UNSET,
    )


@strawberry.input(description="Input of legalHoldEnd.")
class LegalHoldEndInput(Options):
    legal_holds: list[LegalHoldRef] = attribute_field(
        "Legal holds to end, 1 to 1,000 by default; more are LIMIT_REACHED."
    )


@strawberry.input(description="Input of legalHoldCreate.")
class LegalHoldCreateInput(Options):
    user: UserRef = attribute_field(
        "Account whose mail is copied. It can't be the signed-in user's, nor, for an ADMIN, that "
        "of a ROOT."
    )
    starts_at: datetime | None = attribute_field(
        "Copies messages that were received at or after this time. It also copies new messages "
        "with an earlier date that this server stores at or after this time. Default: no lower "
        "limit.",
        default=UNSET,
    )
    ends_at: datetime | None = attribute_field(
        "Copies messages that were received before this time, which must be after `startsAt`. New "
        "messages with a later date are copied too if they are stored before this time. Default: "
        "until the legal hold ends.",
        default=UNSET,
    )
    expires_at: datetime = attribute_field(
        "End of the legal hold, in the future and at most 36,500 days ahead. From this time on "
        "nothing is copied, and the next clean-up deletes the copies."
    )
    reason: str | None = attribute_field(
        "Reason for the legal hold, at most 1,000 characters; more are an error. Null or empty: "
        "none. Default: none.",
        default=UNSET,
    )


@strawberry.type(description="Payload of legalHoldCreate.")
class LegalHoldPayload(MutationPayload):
    legal_hold: LegalHold | None = attribute_field(
        "Created legal hold. Null if the mutation failed.", default=None
    )


@strawberry.type
class LegalHoldQuery:
    @query(
        "Returns a legal hold by ID, also an expired one. Null if it does not exist or was ended "
        "by `legalHoldEnd`. For an ADMIN, a legal hold of the own account is null too; a ROOT "
        "sees it.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def legal_hold(self, info: Info, by: LegalHoldRef) -> LegalHold | None:
        key = id_from_ref(by, "by")
        return LegalHold.from_row_or_none(
            await info.context.load(legal_holds.load_visible_legal_holds_by_id, key)
        )

    @query(
        "Returns the legal holds of all accounts, also of deleted accounts and expired ones, but "
        "not those that `legalHoldEnd` ended. An ADMIN does not get the legal holds on the own "
        "account; a ROOT gets all.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def legal_holds(
        self,
        info: Info,
        filter: LegalHoldFilter | None = UNSET,
        order_by: LegalHoldOrder = LegalHoldOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[LegalHold]:
        ctx = info.context
        user_id = await _held_user_id_or_unmatchable_id(info, filter.user if filter else None)
        list_order = legal_holds.LEGAL_HOLD_ORDERS[order_by]
        list_ordering = ordering_name(f"legal-holds-{order_by}", user_id)
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            LegalHold,
            await legal_holds.read_visible_legal_hold_page(
                ctx, user_id, requested_page, selected_columns(info, LegalHold), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: legal_holds.count_visible_legal_holds(ctx, user_id),
        )


async def _held_user_id_or_unmatchable_id(info: Info, user_ref: UserRef | None) -> int | None:
    """Return the id of the audited account, or None if no account is named.

    A deleted account can only be named by its id.
    """
    if not user_ref:
        return None
    if user_ref.id:
        return global_ids.decode("User", user_ref.id.value, path=("filter", "user", "id"))
    row = await load_visible_user(info, user_ref)
    return row.id if row else NO_USER_ID


@strawberry.type
class LegalHoldMutation:
    @mutation(
        "Creates a legal hold, which copies mail of an account in a period: stored, deleted but "
        "restorable, and future mail, received, sent or saved. A task copies the stored messages. "
        "The account is not notified. An account has at most 10 legal holds that have not ended; "
        "above that the error is LIMIT_REACHED. The signed-in user's own account is "
        "FORBIDDEN_OPERATION. The audit log records the creation.",
        role=Role.ADMIN,
        scope=Scope.FULL,
        access=MANAGED,
    )
    async def legal_hold_create(self, info: Info, input: LegalHoldCreateInput) -> LegalHoldPayload:
        new = NewLegalHold(
            require_found(await require_visible_user_id_if_named(info, input.user), path=["user"]),
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
        "Ends legal holds before their expiry, all or none. Expired ones are removed too. The "
        "legal holds and their copies are unavailable at once, and a later clean-up deletes them "
        "for good. The audit log records the end. LIMIT_REACHED for more than 1,000 references "
        "(by default).",
        role=Role.ROOT,
        scope=Scope.FULL,
    )
    async def legal_hold_end(self, info: Info, input: LegalHoldEndInput) -> DeletePayload:
        keys = ids_from_refs(info, input.legal_holds, "legalHolds")
        await legal_holds.end_legal_holds_and_mark_removed(info.context, keys)
        return DeletePayload.of_keys("LegalHold", keys)
