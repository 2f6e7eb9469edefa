"""GraphQL types, queries and mutations of filters."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import Task
from graph.filters.inputs import (
    FilterApplyInput,
    FilterCreateInput,
    FilterListFilter,
    FilterUpdateInput,
)
from graph.mailboxes.types import Mailbox
from graph.messages.deleted_messages import TaskPayload
from graph.messages.mime_parts import HeaderField
from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField, NestedViewField, View, return_unchanged
from graph.types.references import (
    MessageRef,
    UserRef,
    find_unchecked_message_id,
    ids_from_global_ids,
    load_named_user_id,
    load_user_or_viewer_id,
    value_or_none,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import BigInt
from mail.mime import DecodedField
from models.errors import NotFound, require_found
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from resolvers.filters import apply_task, filter_tests
from resolvers.filters import loaders as filter_loaders
from resolvers.filters import mutations as filter_mutations
from resolvers.filters.loaders import (
    CREATED_ORDER_CURSOR_KIND,
    RUN_ORDER_CURSOR_KIND,
    FilterActionValues,
    FilterListConditions,
    FilterListing,
)
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.notifications import webhooks
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.notifications.webhooks import Webhook
    from graph.users.types import User

QUERY_COLUMNS = ("query",)
ACTION_COLUMNS = ("action", "targets")
MESSAGE_ARGUMENT = strawberry.argument(description="One that is there.")
RAW_ARGUMENT = strawberry.argument(description="Or one as it would come, with its header.")
USER_ARGUMENT = strawberry.argument(description="Whose filters; default: the viewer's.")


def _json_field(key: str, default: Any = None) -> DerivedField:
    """Return a field that shows a member of the stored JSON."""
    return DerivedField((), lambda query: query.get(key, default))


def _header_field_of_filter_query(query: Mapping[str, Any]) -> HeaderField | None:
    """Return the header test of a stored query as a header field; None if it has none."""
    header_test = query.get("header")
    if header_test is None:
        return None
    value = header_test["value"] or ""
    return HeaderField.from_row(
        DecodedField(header_test["key"], value, f"{header_test['key']}: {value}".rstrip())
    )


@strawberry.type(description="Test by an expression (POSIX extended), in any case.")
class RegexTest(View):
    key: str | None = attribute_field("Name of a header; null = the texts of the body.")
    pattern: str = attribute_field("The expression.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "key": _json_field("key"),
        "pattern": _json_field("pattern"),
    }


@strawberry.type(description="All given tests must hold; null = no such test.")
class FilterQuery(View):
    from_: str | None = attribute_field("In From or Sender, in any case.", name="from")
    to: str | None = attribute_field("In To or Cc.")
    subject: str | None = attribute_field("In Subject.")
    list_id: str | None = attribute_field("In List-Id.")
    text: str | None = attribute_field("In a text of the body.")
    has_attachment: bool | None = attribute_field("With or without files.")
    size: BigInt | None = attribute_field(
        "Larger than so many bytes; below 0, smaller than its absolute value."
    )
    header: HeaderField | None = attribute_field('Another header; the value "" = it is there.')
    regex: RegexTest | None = attribute_field("An expression.")
    query: str | None = attribute_field("A search text, as it was given.")
    all: list["FilterQuery"] = attribute_field("Each of these holds, too; empty = no such test.")
    any: list["FilterQuery"] = attribute_field("At least one of these holds; empty = no such test.")
    not_: list["FilterQuery"] = attribute_field("None of these holds.", name="not")


FilterQuery.derived_fields = {
    "from_": _json_field("from"),
    "to": _json_field("to"),
    "subject": _json_field("subject"),
    "list_id": _json_field("listId"),
    "text": _json_field("text"),
    "has_attachment": _json_field("hasAttachment"),
    "size": _json_field("size"),
    "header": DerivedField((), _header_field_of_filter_query),
    "regex": NestedViewField((), lambda query: query.get("regex"), RegexTest),
    "query": DerivedField((), lambda query: query["query"]["text"] if query.get("query") else None),
    "all": NestedViewField((), lambda query: query.get("all", ()), FilterQuery, is_list=True),
    "any": NestedViewField((), lambda query: query.get("any", ()), FilterQuery, is_list=True),
    "not_": NestedViewField((), lambda query: query.get("not", ()), FilterQuery, is_list=True),
}


@strawberry.type(description="Answer by a filter, under the guards of autoreply.")
class FilterReply(View):
    subject: str = attribute_field('"" = subject of the original.')
    text: str = attribute_field("Plain text.")
    html: str = attribute_field("HTML.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "subject": _json_field("subject"),
        "text": _json_field("text"),
        "html": _json_field("html"),
    }


@strawberry.type(description="What happens to a match; null = nothing is said of it.")
class FilterAction(View):
    seen: bool | None = attribute_field("Mark read.")
    flag: bool | None = attribute_field("Flag.")
    delete: bool | None = attribute_field("Do not store.")
    spam: bool | None = attribute_field("To Junk; false = never Junk.")
    mailbox: Mailbox | None = link(
        "mailbox_id",
        mailbox_loaders.load_visible_by_ids,
        Mailbox.from_row_or_none,
        description="Store there.",
    )
    targets: list[str] = attribute_field(
        "Forward: addresses, smtp:// relays without their passwords, http(s):// URLs."
    )
    labels: list[str] = attribute_field("Keywords to set.")
    remove_labels: list[str] = attribute_field("Keywords not to set, whatever another filter says.")
    reply: FilterReply | None = attribute_field(
        "Answer the sender, once in setting autoreply.interval."
    )
    webhook: Annotated["Webhook", strawberry.lazy("graph.notifications.webhooks")] | None = link(
        "webhook_id",
        webhooks.load_visible_webhooks_by_id,
        lazy_view_factory("graph.notifications.webhooks", "Webhook"),
        description="Told of the message; shown to those who see webhooks.",
    )
    stop: bool = attribute_field("No further filters.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "reply": NestedViewField(("reply",), lambda reply: reply, FilterReply)
    }

    @field("Store there as well, counted against the quota each time.", "copies")
    async def copy_to(self, info: Info) -> list[Mailbox]:
        rows = await info.context.load_many(mailbox_loaders.load_visible_by_ids, self.row.copies)
        return [Mailbox.from_row(row) for row in rows if row]


@strawberry.type(description="Rule of a user.", directives=[Auth(scope=Scope.READ)])
class Filter(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Whose.",
    )
    name: str = attribute_field("Name.")
    order: int = attribute_field(
        "Place in the sequence: the lowest first, of equal ones the oldest."
    )
    query: FilterQuery = attribute_field("Which mail.")
    action: FilterAction = attribute_field("What is done.")
    active: bool = attribute_field("In force.")
    created_at: datetime = attribute_field("Creation.")
    metadata: JSON | None = attribute_field("Free form.")
    match_count: BigInt = attribute_field("Times it acted.")

    load_batch = staticmethod(filter_loaders.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Filter"),
        "metadata": DerivedField(("public_metadata",), return_unchanged),
        "query": NestedViewField(QUERY_COLUMNS, lambda query: query, FilterQuery),
        "action": NestedViewField(
            ACTION_COLUMNS, FilterActionValues.from_stored_action, FilterAction
        ),
    }

    @field("Tests as pairs, for people, in the user's language.", *QUERY_COLUMNS, "user_id")
    async def query_text(self, info: Info) -> list[list[str]]:
        return await filter_loaders.describe_query(info.context, self.row)

    @field("Actions as pairs, for people, in the user's language.", *ACTION_COLUMNS, "user_id")
    async def action_summary(self, info: Info) -> list[list[str]]:
        return await filter_loaders.describe_action(info.context, self.row)

    @field(
        "The same as Sieve; what that has no words for is a comment.",
        *QUERY_COLUMNS,
        *ACTION_COLUMNS,
        cost=5,
    )
    async def sieve(self, info: Info) -> str:
        return await filter_loaders.sieve_script(info.context, self.row)


async def load_filter_page(
    info: Info, user_id: int, first: int | None, after: str | None
) -> Connection[Filter]:
    """Load a page of the filters of an account, in the order they are run."""
    ctx, requested_page = (
        info.context,
        page_request(RUN_ORDER_CURSOR_KIND, first, after, None, None),
    )
    page_key = FilterListing(user_id, requested_page, selected_columns(info, Filter))
    return await connection_of_page(
        info,
        Filter,
        await ctx.load(filter_loaders.load_pages, page_key),
        lambda row: Cursor(RUN_ORDER_CURSOR_KIND, row.order, row.id),
        lambda: ctx.load(filter_loaders.count_listings, page_key),
    )


@strawberry.type(description="One filter against one message.")
class FilterTestResult:
    filter: Filter = attribute_field("The filter.")
    matches: bool = attribute_field("All tests hold.")
    actions: list[str] = attribute_field(
        "What it would do, in the user's language: what an earlier filter has decided, or a stop "
        "has ended, is not among it."
    )


@strawberry.type(description="Answer of filterCreate.")
class FilterPayload(MutationPayload):
    filter: Filter | None = attribute_field("The filter.", default=None)


@strawberry.type(description="Filters, as they are now.")
class FiltersPayload(MutationPayload):
    filters: list[Filter] = attribute_field(
        "In the order of the ids, or of the script.", default_factory=list
    )


@strawberry.type
class FilterRootQuery:
    @query("One; for DOMAIN_ADMIN with FILTERS also of users of the domains.", scope=Scope.READ)
    async def filter(self, info: Info, id: strawberry.ID) -> Filter | None:
        return Filter.from_row_or_none(
            await info.context.load(
                filter_loaders.load_visible_by_ids, global_ids.decode("Filter", id)
            )
        )

    @query("Of all users, the oldest first.", role=Role.ADMIN, scope=Scope.READ)
    async def filters(
        self,
        info: Info,
        filter: FilterListFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Filter]:
        conditions = await filter.resolve_conditions(info) if filter else FilterListConditions()
        list_ordering = ordering_name(
            CREATED_ORDER_CURSOR_KIND, None if conditions == FilterListConditions() else conditions
        )
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Filter,
            await filter_loaders.load_page_of_all_users(
                info.context, conditions, requested_page, selected_columns(info, Filter)
            ),
            lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
            lambda: filter_loaders.count_of_all_users(info.context, conditions),
        )

    @query("What each filter of a user finds in a message, and would do with it.", scope=Scope.READ)
    async def filter_test(
        self,
        info: Info,
        user: Annotated[UserRef | None, USER_ARGUMENT] = UNSET,
        message: Annotated[MessageRef | None, MESSAGE_ARGUMENT] = UNSET,
        raw: Annotated[str | None, RAW_ARGUMENT] = UNSET,
    ) -> list[FilterTestResult]:
        owner = require_found(await load_user_or_viewer_id(info, user or None), path=["user"])
        key = await find_unchecked_message_id(info, message, path="message") if message else None
        if message and key is None:
            raise NotFound("", path=["message"])
        results = await filter_tests.run_filters_on_message(
            info.context, owner, key, value_or_none(raw)
        )
        return [
            FilterTestResult(
                filter=Filter.from_row(result.filter_row),
                matches=result.matches,
                actions=list(result.action_descriptions),
            )
            for result in results
        ]


@strawberry.type
class FilterMutation:
    @mutation(
        "Makes a filter, at the end unless order is given. Of others a DOMAIN_ADMIN needs FILTERS.",
        scope=Scope.SETTINGS,
    )
    async def filter_create(self, info: Info, input: FilterCreateInput) -> FilterPayload:
        owner = await load_named_user_id(info, input.user or None)
        key = await filter_mutations.create_filter(info.context, owner, input.to_column_values())
        return FilterPayload(
            filter=Filter.from_row(await info.context.load(filter_loaders.load_visible_by_ids, key))
        )

    @mutation(
        "Changes filters, all or none; query and action are merged field by field.",
        scope=Scope.SETTINGS,
    )
    async def filter_update(self, info: Info, input: FilterUpdateInput) -> FiltersPayload:
        keys = ids_from_global_ids(info, "Filter", input.ids)
        await filter_mutations.update_filters(info.context, keys, input.set.to_column_values())
        rows = await info.context.load_many(filter_loaders.load_visible_by_ids, keys)
        return FiltersPayload(filters=[Filter.from_row(require_found(row)) for row in rows])

    @mutation("Deletes filters, all or none.", scope=Scope.SETTINGS)
    async def filter_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await filter_mutations.delete_filters(
            info.context, ids_from_global_ids(info, "Filter", input.ids)
        )
        return DeletePayload(deleted_ids=input.ids)

    @mutation(
        "Runs filters of the account, in their order, on stored messages: moves, copies, marks or "
        "deletes them. Sends no messages, replies or webhooks.",
        scope=Scope.MAIL,
    )
    async def filter_apply(self, info: Info, input: FilterApplyInput) -> TaskPayload:
        keys = ids_from_global_ids(info, "Filter", input.ids)
        selection = input.select.to_selection(info)
        return TaskPayload(
            task=Task.from_row(await apply_task.queue_filter_run(info.context, keys, selection))
        )
