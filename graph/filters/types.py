"""GraphQL types, queries and mutations of filters."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import Task, TaskPayload
from graph.filters.dry_run_messages import MessageSourceInput, resolve_message_source_or_raise
from graph.filters.inputs import (
    FilterApplyInput,
    FilterCreateInput,
    FilterDeleteInput,
    FilterFilter,
    FilterRef,
    FilterUpdateInput,
)
from graph.filters.query_types import FilterQuery
from graph.mailboxes.types import Mailbox
from graph.types import global_ids
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED, OVERSEEN, OWN
from graph.types.object_references import id_from_ref, ids_from_refs
from graph.types.object_views import DerivedField, NestedViewField, View, return_unchanged
from graph.types.references import (
    UserRef,
    load_visible_user_id_or_viewer_id,
    require_visible_user_id_if_named,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import BigInt
from models.errors import require_found
from models.store.keyset_pages import ordering_name
from models.users.roles import AdminPermission, Role, Scope
from resolvers.filters import apply_task, filter_tests
from resolvers.filters import loaders as filter_loaders
from resolvers.filters import mutations as filter_mutations
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
BY_ARGUMENT = strawberry.argument(description="Filter to return.")
MESSAGE_ARGUMENT = strawberry.argument(description="Message to test.")
USER_ARGUMENT = strawberry.argument(
    description="Owner of the filters. Default: the signed-in user."
)


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
        "True: the message is stored in Junk. False: it is kept out of Junk, whatever its spam "
        "score, unless it has a virus."
    )
    mailbox: Mailbox | None = link(
        "mailbox_id",
        mailbox_loaders.load_visible_by_ids,
        Mailbox.from_row_or_none,
        description=(
            "Mailbox that the message is stored in, unless an earlier filter decides that, "
            "or a filter deletes the message or stores it in Junk."
        ),
    )
    forward_to: list[str] = attribute_field(
        "Addresses, `smtp://` relays and `https://` URLs that get a copy. Passwords of relays "
        "are shown as `***`. At most 4."
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
        description="Webhook that gets a FILTER_MATCHED event with the ID and size of the "
        "message. Null: there is none, or the caller can't see it.",
    )
    stop: bool = attribute_field("True if no filter runs after this one.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "reply": NestedViewField(("reply",), lambda reply: reply, FilterReply)
    }

    @field(
        (
            "Mailboxes that get an additional copy. Each copy counts against the quota. If a "
            "filter deletes the message, no copies are stored. At most 10."
        ),
        "copies",
    )
    async def copy_to(self, info: Info) -> list[Mailbox]:
        rows = await info.context.load_many(mailbox_loaders.load_visible_by_ids, self.row.copies)
        return [Mailbox.from_row(row) for row in rows if row]


@strawberry.type(description="Test or action of a filter in words.")
class SummaryItem:
    label: str = attribute_field("Name of the test or action, such as `Subject` or `Move to`.")
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
        "Number of messages that the filter has acted on since it was created."
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
    info: Info, user_id: int, order: FilterOrder, page_arguments: PageArguments
) -> Connection[Filter]:
    """Load a page of the filters of an account."""
    ctx, list_order = info.context, filter_loaders.LIST_ORDERS[order]
    requested_page = page_request(f"filters-{order}", *page_arguments)
    page_key = FilterListing(user_id, requested_page, selected_columns(info, Filter), order)
    return await connection_of_page(
        info,
        Filter,
        await ctx.load(filter_loaders.load_visible_filter_pages, page_key),
        lambda row: list_order.cursor_of_row(row, requested_page.ordering),
        lambda: ctx.load(filter_loaders.count_visible_filters_of_listings, page_key),
    )


@strawberry.type(description="Result of one filter for one message, as `filterTest` computes it.")
class FilterTestResult:
    filter: Filter = attribute_field("Tested filter.")
    matches: bool = attribute_field("True if the message passes all tests of the filter.")
    actions: list[str] = attribute_field(
        "Actions that the filter would do, in words in the language of the owner. Actions that "
        "an earlier filter has set already, or prevents, are left out. Empty for an inactive "
        "filter. At most 100."
    )
    step_limit_reached: bool = attribute_field(
        "True if the filter was stopped after 5,000 steps of the Sieve interpreter. Also true if "
        "it was not run because the filters before it took more than 40,000 steps. `matches` is "
        "then false."
    )


@strawberry.type(description="Payload of filterCreate.")
class FilterPayload(MutationPayload):
    filter: Filter | None = attribute_field("Created filter.", default=None)


@strawberry.type(description="Payload of filterUpdate, filtersCreate and filterImport.")
class FiltersPayload(MutationPayload):
    filters: list[Filter] = attribute_field(
        "Changed or created filters, in the order of the input or of the imported script.",
        default_factory=list,
    )


@strawberry.type
class FilterRootQuery:
    @query(
        "Returns one filter by ID. Null if it does not exist or the caller can't see it.",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.FILTERS),
    )
    async def filter(self, info: Info, by: Annotated[FilterRef, BY_ARGUMENT]) -> Filter | None:
        return Filter.from_row_or_none(
            await info.context.load(filter_loaders.load_visible_by_ids, id_from_ref(by, "by"))
        )

    @query(
        "Returns filters of all users, also inactive ones.",
        role=Role.ADMIN,
        scope=Scope.READ,
        access=OVERSEEN,
    )
    async def filters(
        self,
        info: Info,
        filter: FilterFilter | None = UNSET,
        order_by: Annotated[
            FilterOrder,
            strawberry.argument(
                description="Sort order of the filters. Default: CREATED_AT_ASC, oldest first."
            ),
        ] = FilterOrder.CREATED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Filter]:
        conditions = (
            await filter.resolve_conditions_or_match_nothing(info)
            if filter
            else FilterListConditions()
        )
        list_ordering = ordering_name(
            f"filters-of-all-{order_by}",
            None if conditions == FilterListConditions() else conditions,
        )
        list_order = filter_loaders.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Filter,
            await filter_loaders.load_visible_filter_page(
                info.context, conditions, requested_page, selected_columns(info, Filter), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: filter_loaders.count_visible_filters(info.context, conditions),
        )

    @query(
        "Tests all filters of a user with one message and returns the result of each, without "
        "changing anything. Inactive filters are tested too. The results are in the order in "
        "which the filters run. A stored message that the caller can't read is an error. By "
        "default a user has at most 400 filters.",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.FILTERS),
    )
    async def filter_test(
        self,
        info: Info,
        message: Annotated[MessageSourceInput, MESSAGE_ARGUMENT],
        user: Annotated[UserRef | None, USER_ARGUMENT] = UNSET,
    ) -> list[FilterTestResult]:
        owner = require_found(
            await load_visible_user_id_or_viewer_id(info, user or None), path=["user"]
        )
        tested = await resolve_message_source_or_raise(info, message)
        results = await filter_tests.dry_run_filters_on_message(info.context, owner, tested)
        return [
            FilterTestResult(
                filter=Filter.from_row(result.filter_row),
                matches=result.matches,
                actions=list(result.action_descriptions),
                step_limit_reached=result.exceeds_limit,
            )
            for result in results
        ]


@strawberry.type
class FilterMutation:
    @mutation(
        "Creates a filter, which runs on each message that the user receives from now on. By "
        "default a user has at most 400 filters.",
        scope=Scope.SETTINGS,
        access=MANAGED.with_permissions(AdminPermission.FILTERS),
    )
    async def filter_create(self, info: Info, input: FilterCreateInput) -> FilterPayload:
        owner = await require_visible_user_id_if_named(info, input.user or None)
        key = await filter_mutations.create_filter(info.context, owner, input.to_column_values())
        return FilterPayload(
            filter=Filter.from_row(await info.context.load(filter_loaders.load_visible_by_ids, key))
        )

    @mutation(
        "Changes filters, all or none. Given tests and actions replace those of the same name; "
        "others are unchanged. LIMIT_REACHED for more than 1,000 references (by default).",
        scope=Scope.SETTINGS,
        access=MANAGED.with_permissions(AdminPermission.FILTERS),
    )
    async def filter_update(self, info: Info, input: FilterUpdateInput) -> FiltersPayload:
        keys = ids_from_refs(info, input.filters, "filters")
        await filter_mutations.update_filters(info.context, keys, input.set.to_column_values())
        rows = await info.context.load_many(filter_loaders.load_visible_by_ids, keys)
        return FiltersPayload(filters=[Filter.from_row(require_found(row)) for row in rows])

    @mutation(
        "Deletes filters, all or none. Messages that they have already acted on are unchanged. "
        "LIMIT_REACHED for more than 1,000 references (by default).",
        scope=Scope.SETTINGS,
        access=MANAGED.with_permissions(AdminPermission.FILTERS),
    )
    async def filter_delete(self, info: Info, input: FilterDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.filters, "filters")
        await filter_mutations.delete_filters(info.context, keys)
        return DeletePayload(deleted_ids=[global_ids.encode("Filter", key) for key in keys])

    @mutation(
        "Starts a task that runs filters of the signed-in user on stored messages. The filters "
        "move, copy, mark or delete messages; they send no messages, replies or webhooks. Only "
        "the action `spam: false` (no spam) moves messages out of Junk. Copies above the quota "
        "are skipped. Deleted messages can be restored. UNAVAILABLE if `select` searches for "
        "words while more than 5,000 messages are not indexed yet: retry later.",
        scope=Scope.MAIL,
        access=OWN,
    )
    async def filter_apply(self, info: Info, input: FilterApplyInput) -> TaskPayload:
        keys = ids_from_refs(info, input.filters, "filters")
        selection = input.select.to_validated_selector(info)
        task = await apply_task.queue_filter_run(info.context, keys, selection)
        return TaskPayload(task=Task.from_row(task))
