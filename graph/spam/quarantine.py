"""GraphQL types and query of the quarantine."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.domains.types import Domain
from graph.http import download_urls
from graph.messages.mime_parts import Attachment
from graph.spam.spam_report import SpamSymbol
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_access import OVERSEEN
from graph.types.object_views import DerivedField
from graph.types.references import UserSelection, user_selector_from_selection, value_or_none
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import URL, ByteSize
from models.errors import require_found
from models.store.keyset_pages import ordering_name
from models.users.roles import AdminPermission, Scope, UserPermission
from resolvers.domains import loaders as domain_loaders
from resolvers.spam import quarantine
from resolvers.spam.quarantine import (
    LIST_ORDERS,
    QuarantineConditions,
    QuarantineOrder,
    UserQuarantineListing,
)
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

ATTACHMENT_GUARD: dict[str, Any] = {"user_permission": UserPermission.QUARANTINE_ATTACHMENTS}


def _symbols_from_json(stored_symbols: list[dict[str, Any]]) -> list[SpamSymbol]:
    """Return the stored symbols of the scanner."""
    return [SpamSymbol(**symbol) for symbol in stored_symbols]


@strawberry.type(
    description="Message that is held in the quarantine.", directives=[Auth(scope=Scope.READ)]
)
class QuarantineItem(NodeView):
    queue_id: str = attribute_field("Queue ID of the message, as it occurs in logs.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User whose quarantine holds the message. Messages of deleted users are never "
        "returned.",
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Domain of the recipient. Null: the domain was deleted, or the caller can't "
        "see it.",
    )
    sender: str = attribute_field("Envelope sender. Empty: the null sender of a bounce.")
    recipient: str = attribute_field("Envelope recipient (RCPT TO) of the message.")
    subject: str = attribute_field("Subject, decoded. Empty: the message has none.")
    size: ByteSize = attribute_field("Size of the message in bytes.")
    score: float = attribute_field(
        "Spam score of the message in points of the spam scanner, or from 0 to 100 if no scanner "
        "ran."
    )
    symbols: list[SpamSymbol] = attribute_field("Spam tests that matched. At most 200.")
    virus: bool = attribute_field("True if a virus was found.")
    virus_name: str | None = attribute_field("Name of the virus. Null: none was found.")
    created_at: datetime = attribute_field("Time when the message was put into the quarantine.")
    notified: bool = attribute_field("True if a quarantine digest has listed the message.")
    expires_at: datetime = attribute_field(
        "Time when the message is deleted from the quarantine. If newer messages exceed the limits "
        "of the user's quarantine, the oldest messages are deleted earlier."
    )

    load_batch = staticmethod(quarantine.load_visible_items_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("QuarantineItem"),
        "symbols": DerivedField(("symbols",), _symbols_from_json),
        "virus": DerivedField(("virus",), lambda name: name is not None),
        "virus_name": DerivedField(("virus",), lambda name: name),
    }

    @field(
        "Plain text of the message, converted from HTML if there is none: the first 65,536 "
        "characters. Null: the message has no text. Reading another user's message is written to "
        "that user's security log.",
        cost=20,
    )
    async def text(self, info: Info) -> str | None:
        stored = require_found(
            await info.context.load(quarantine.load_visible_messages_and_log_reads, self.row.id)
        )
        return await quarantine.truncated_plain_text(stored)

    @field(
        "Attachments with their names and download URLs. At most 10,000 parts of the message are"
        " read.",
        "attachments",
        **ATTACHMENT_GUARD,
    )
    def attachments(self) -> list[Attachment]:
        return Attachment.list_from_message(self.row, is_quarantined=True)

    @field(
        "Signed download URL of the whole message (RFC 5322), valid for 15 to 20 minutes.",
        **ATTACHMENT_GUARD,
    )
    def source_url(self, info: Info) -> URL:
        viewer = info.context.viewer
        return download_urls.sign_checked_path(
            info, download_urls.quarantined_message_path(self.row.id), viewer.user_id
        )


@strawberry.input(description="Conditions on the quarantined messages of a user. All must hold.")
class UserQuarantineFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only messages with this text in the subject, the envelope addresses, From (name "
        "or address), or the name of a spam test. Case and accents are ignored. At most 1,000 "
        "characters.",
        default=UNSET,
    )
    score_above: float | None = attribute_field(
        "Returns only messages with `QuarantineItem.score` above this value, from -1e9 to 1e9.",
        default=UNSET,
    )
    virus: bool | None = attribute_field(
        "True returns only messages with a virus, false only the others.", default=UNSET
    )
    since: datetime | None = attribute_field(
        "Returns only messages that were put into the quarantine at this time or later.",
        default=UNSET,
    )

    def to_conditions(self) -> QuarantineConditions:
        """Convert the filter to conditions of the resolvers."""
        return QuarantineConditions(
            query=self.query or None,
            score_above=value_or_none(self.score_above),
            has_virus=value_or_none(self.virus),
            received_since=value_or_none(self.since),
        )


@strawberry.input(description="Conditions on quarantined messages. All must hold.")
class QuarantineFilter(UserQuarantineFilter):
    users: UserSelection | None = attribute_field(
        "Returns only messages in the quarantine of these users. Default: all that the caller can "
        "see.",
        default=UNSET,
    )

    def to_conditions(self) -> QuarantineConditions:
        """Convert the filter to conditions of the resolvers."""
        return replace(
            super().to_conditions(),
            user_selector=user_selector_from_selection(self.users or None, path="filter"),
        )


async def load_quarantine_page(
    info: Info,
    user_id: int,
    item_filter: UserQuarantineFilter | None,
    order_by: QuarantineOrder,
    page_arguments: PageArguments,
) -> Connection[QuarantineItem]:
    """Load a page of the quarantined messages of an account."""
    conditions = item_filter.to_conditions() if item_filter else QuarantineConditions()
    list_order = LIST_ORDERS[order_by]
    list_ordering = ordering_name(
        f"user-quarantine-{order_by}", None if conditions == QuarantineConditions() else conditions
    )
    page_key = UserQuarantineListing(
        user_id,
        page_request(list_ordering, *page_arguments),
        list_order,
        selected_columns(info, QuarantineItem),
        conditions,
    )
    return await connection_of_page(
        info,
        QuarantineItem,
        await info.context.load(quarantine.load_visible_item_pages_by_user, page_key),
        lambda row: list_order.cursor_of_row(row, list_ordering),
        lambda: info.context.load(quarantine.count_visible_items_by_user, page_key),
    )


@strawberry.type
class QuarantineQuery:
    @query(
        "Returns the quarantined messages that the caller can see: those of the signed-in user, "
        "and for administrators also those of other users. Messages of deleted users are left out.",
        scope=Scope.READ,
        user_permission=UserPermission.QUARANTINE,
        access=OVERSEEN.with_permissions(AdminPermission.QUARANTINE),
    )
    async def quarantine(
        self,
        info: Info,
        filter: QuarantineFilter | None = UNSET,
        order_by: QuarantineOrder = QuarantineOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[QuarantineItem]:
        ctx, conditions = info.context, filter.to_conditions() if filter else QuarantineConditions()
        list_ordering = ordering_name(
            f"quarantine-{order_by}", None if conditions == QuarantineConditions() else conditions
        )
        list_order = LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            QuarantineItem,
            await quarantine.read_item_page(
                ctx, conditions, requested_page, selected_columns(info, QuarantineItem), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: quarantine.count_items(ctx, conditions),
        )
