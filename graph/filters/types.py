"""GraphQL types of filters."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry.scalars import JSON

from graph.filters.query_types import FilterQuery
from graph.mailboxes.types import Mailbox
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field
from graph.types.object_views import DerivedField, NestedViewField, View, return_unchanged
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import BigInt
from models.store.keyset_pages import ordering_name
from models.users.roles import Scope
from resolvers.filters import loaders as filter_loaders
from resolvers.filters.loaders import (
    FilterActionValues,
    FilterListConditions,
    FilterListing,
    FilterOrder,
)
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.notifications import webhook_lists
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.notifications.webhooks import Webhook
    from graph.users.types import User

QUERY_COLUMNS = ("query",)
ACTION_COLUMNS = ("action", "forward_to")


def _text_field(key: str) -> DerivedField:
    """Return a field that shows a text of the stored JSON, or None if it is empty."""
    return DerivedField((), lambda values: values.get(key) or None)


@strawberry.type(
    description="Reply of a filter. It is suppressed for the same reasons as an autoreply."
)
class FilterReply(View):
    subject: str | None = attribute_field(
        "Subject of the reply. Null: the subject of the original message."
    )
    text: str | None = attribute_field("Body of the reply as plain text. Null: there is none.")
    html: str | None = attribute_field("Body of the reply as HTML. Null: there is none.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "subject": _text_field("subject"),
        "text": _text_field("text"),
        "html": _text_field("html"),
    }


@strawberry.type(
    description="Actions of a filter on a matching message. Null: the filter leaves the decision "
    "to other filters."
)
class FilterAction(View):
    seen: bool | None = attribute_field(
        r"True: the flag \Seen is set. False: filters that run later do not set it."
    )
    flag: bool | None = attribute_field(
        r"True: the flag \Flagged is set. False: filters that run later do not set it."
    )
    delete: bool | None = attribute_field(
        "True: the message is discarded instead of stored. False: filters that run later do not "
        "discard it."
    )
    spam: bool | None = attribute_field(
        "True: the message is stored in Junk, unless the spam level of the user is 100. False: it "
        "is kept out of Junk, whatever its spam score, unless it has a virus."
    )
    mailbox: Mailbox | None = link(
        "mailbox_id",
        mailbox_loaders.load_visible_by_ids,
        Mailbox.from_row_or_none,
        description=(
            "Mailbox that the message is stored in, unless an earlier filter decides that, or a "
            "filter deletes the message. Spam is stored in Junk instead, unless `spam` is false. "
            "Null: the filter has no such action, or the caller can't see the mailbox."
        ),
    )
    forward_to: list[str] = attribute_field(
        "Addresses, `smtp://` or `smtps://` relays, and `http://` or `https://` URLs that get a "
        "copy, unless the message is spam. Passwords of relays are shown as `***`. At most 4."
    )
    keywords: list[str] = attribute_field("Keywords that are added to the message. At most 32.")
    remove_keywords: list[str] = attribute_field(
        "Keywords that the message does not get, even if another filter or a script adds them. "
        "At most 32."
    )
    reply: FilterReply | None = attribute_field(
        "Reply to the sender, if no earlier matching filter has one. Each sender gets it at "
        "most once in the interval of the setting `autoreply.interval`. Null: there is none."
    )
    webhook: Annotated["Webhook", strawberry.lazy("graph.notifications.webhooks")] | None = link(
        "webhook_id",
        webhook_lists.load_visible_webhooks_by_id,
        lazy_view_factory("graph.notifications.webhooks", "Webhook"),
        description=(
            "Webhook that gets a FILTER_MATCHED event with the size and ID of the message (no ID "
            "if the message is not stored). Null: the filter has no webhook, or the caller can't "
            "see it."
        ),
    )
    stop: bool = attribute_field(
        "True if no filter runs after this one when it matches. The active Sieve script still runs."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "reply": NestedViewField(("reply",), lambda reply: reply, FilterReply)
    }

    @field(
        (
            "Mailboxes that get an additional copy. Each copy counts against the quota. If a "
            "filter deletes the message, no copies are stored. Mailboxes that the caller can't see "
            "are left out. At most 10."
        ),
        "copies",
    )
    async def copy_to(self, info: Info) -> list[Mailbox]:
        rows = await info.context.load_many(mailbox_loaders.load_visible_by_ids, self.row.copies)
        return [Mailbox.from_row(row) for row in rows if row]


@strawberry.type(description="Test or action of a filter in words.")
class SummaryItem:
    label: str = attribute_field(
        "Name of the test or action in the language of the filter's owner, such as `Subject` or "
        "`Move to` in English."
    )
    value: str = attribute_field(
        "Value of the test or action, such as the searched text or the path of a mailbox."
    )


@strawberry.type(
    description="Filter of a user. An active filter runs on each received message of the user.",
    directives=[Auth(scope=Scope.READ)],
)
class Filter(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Owner of the filter.",
    )
    name: str = attribute_field("Name of the filter. It can be empty.")
    position: int = attribute_field(
        "Position in the run order, a 32-bit integer. The lowest runs first, equal ones by age."
    )
    query: FilterQuery = attribute_field("Tests that a message must pass.")
    action: FilterAction = attribute_field("Actions that the filter does on a matching message.")
    active: bool = attribute_field("True if the filter runs on received messages.")
    created_at: datetime = attribute_field("Time when the filter was created.")
    metadata: JSON | None = attribute_field(
        "JSON object that clients store with the filter, at most 64 KiB "
        "by default. Null: there is none."
    )
    match_count: BigInt = attribute_field(
        "Number of messages that matched the filter when it ran at delivery or by `filterApply`, "
        "since it was created."
    )

    load_batch = staticmethod(filter_loaders.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Filter"),
        "metadata": DerivedField(("public_metadata",), return_unchanged),
        "query": NestedViewField(QUERY_COLUMNS, lambda query: query, FilterQuery),
        "action": NestedViewField(
            ACTION_COLUMNS, FilterActionValues.from_stored_action, FilterAction
        ),
    }

    @field(
        "Tests of the filter in words, in the language of the owner. A query has at most 100 "
        "tests.",
        *QUERY_COLUMNS,
        "user_id",
    )
    async def query_summary(self, info: Info) -> list[SummaryItem]:
        parts = await filter_loaders.describe_query(info.context, self.row)
        return [SummaryItem(label=part.label, value=part.value) for part in parts]

    @field(
        "Actions of the filter in words, in the language of the owner. At most 100.",
        *ACTION_COLUMNS,
        "user_id",
    )
    async def action_summary(self, info: Info) -> list[SummaryItem]:
        parts = await filter_loaders.load_action_descriptions_of_filter(info.context, self.row)
        return [SummaryItem(label=part.label, value=part.value) for part in parts]

    @field(
        "The filter as a Sieve script (RFC 5228). Actions that Sieve can't express are comments.",
        *QUERY_COLUMNS,
        *ACTION_COLUMNS,
        cost=5,
    )
    async def sieve(self, info: Info) -> str:
        return await filter_loaders.load_filter_as_sieve_script(info.context, self.row)


async def load_filter_page(
    info: Info,
    user_id: int,
    conditions: FilterListConditions | None,
    order: FilterOrder,
    page_arguments: PageArguments,
) -> Connection[Filter]:
    """Load a page of the filters of an account."""
    ctx, list_order = info.context, filter_loaders.LIST_ORDERS[order]
    requested_page = page_request(ordering_name(f"filters-{order}", conditions), *page_arguments)
    page_key = FilterListing(
        user_id,
        requested_page,
        list_order,
        selected_columns(info, Filter),
        conditions or FilterListConditions(),
    )
    return await connection_of_page(
        info,
        Filter,
        await ctx.load(filter_loaders.load_visible_filter_pages, page_key),
        lambda row: list_order.cursor_of_row(row, requested_page.ordering),
        lambda: ctx.load(filter_loaders.count_visible_filters_of_listings, page_key),
    )
