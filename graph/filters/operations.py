"""Queries and mutations of filters."""

from typing import Annotated

import strawberry
from strawberry import UNSET

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
from graph.filters.types import Filter
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, attribute_field
from graph.types.fields import Info, query
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED, OVERSEEN, OWN
from graph.types.object_references import id_from_ref, ids_from_refs
from graph.types.references import (
    UserRef,
    load_visible_user_id_or_viewer_id,
    require_visible_user_id_if_named,
)
from graph.types.row_mapping import selected_columns
from models.errors import require_found
from models.store.keyset_pages import ordering_name
from models.users.roles import AdminPermission, Role, Scope
from resolvers.filters import apply_task, filter_tests
from resolvers.filters import loaders as filter_loaders
from resolvers.filters import mutations as filter_mutations
from resolvers.filters.loaders import (
    FilterListConditions,
    FilterOrder,
)

BY_ARGUMENT = strawberry.argument(description="Filter to return.")
MESSAGE_ARGUMENT = strawberry.argument(description="Message to test.")
USER_ARGUMENT = strawberry.argument(
    description="Owner of the filters. Default: the signed-in user."
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
    filter: Filter | None = attribute_field(
        "Created filter. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of filterUpdate, filtersCreate and filterImport.")
class FiltersPayload(MutationPayload):
    filters: list[Filter] = attribute_field(
        "Changed or created filters, in the order of the input or of the imported script. Empty "
        "if the mutation failed.",
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
        "Returns the filters (mail rules) of all users, active and inactive ones.",
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
        "which the filters run. A stored message that the caller can't read is an error. Filters "
        "that the caller can't see are left out. By default a user has at most 400 filters.",
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
        "Creates a filter. An active filter runs on each message that the user receives from now "
        "on, before the active Sieve script. LIMIT_REACHED if the user has 400 filters (by "
        "default). QUOTA_EXCEEDED if `metadata` does not fit into the storage quota of the user. "
        "Targets of `forwardTo` are written to the user's security log; if somebody else sets "
        "them, the user gets a message.",
        scope=Scope.SETTINGS,
        access=MANAGED.with_permissions(AdminPermission.FILTERS).with_scope(Scope.FULL),
    )
    async def filter_create(self, info: Info, input: FilterCreateInput) -> FilterPayload:
        owner = await require_visible_user_id_if_named(info, input.user or None)
        key = await filter_mutations.create_filter(info.context, owner, input.to_column_values())
        return FilterPayload(
            filter=Filter.from_row(await info.context.load(filter_loaders.load_visible_by_ids, key))
        )

    @mutation(
        "Changes filters, all or none. Given tests and actions replace those of the same name; "
        "others are unchanged. New targets of `forwardTo` are written to the owner's security "
        "log; if somebody else sets them, the owner gets a message. QUOTA_EXCEEDED if new "
        "`metadata` does not fit into the storage quota of the user. LIMIT_REACHED for more than "
        "1,000 references (by default).",
        scope=Scope.SETTINGS,
        access=MANAGED.with_permissions(AdminPermission.FILTERS).with_scope(Scope.FULL),
    )
    async def filter_update(self, info: Info, input: FilterUpdateInput) -> FiltersPayload:
        keys = ids_from_refs(info, input.filters, "filters")
        await filter_mutations.update_filters(info.context, keys, input.set.to_column_values())
        rows = await info.context.load_many(filter_loaders.load_visible_by_ids, keys)
        return FiltersPayload(filters=[Filter.from_row(require_found(row)) for row in rows])

    @mutation(
        "Deletes the given filters, or none of them if one can't be deleted. Messages that the "
        "filters have already acted on are unchanged. LIMIT_REACHED for more than 1,000 filters "
        "(by default).",
        scope=Scope.SETTINGS,
        access=MANAGED.with_permissions(AdminPermission.FILTERS).with_scope(Scope.FULL),
    )
    async def filter_delete(self, info: Info, input: FilterDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.filters, "filters")
        await filter_mutations.delete_filters(info.context, keys)
        return DeletePayload.of_keys("Filter", keys)

    @mutation(
        "Starts a task that runs 1 to 100 filters of the signed-in user on stored messages. "
        "Inactive filters run too. The filters move, copy, mark or delete messages; they send no "
        "messages, replies or webhooks. A message in Junk is not moved, unless a filter has the "
        "action `spam: false` (no spam). It is copied, marked and deleted like other messages. "
        "Messages are copied in groups of up to 50 for each target mailbox. A group that does not "
        "fit into the quota is not copied. Messages that a filter deletes can be restored with "
        "`deletedMessageRestore` for 25 days by default. Drafts that a filter deletes can't be "
        "restored. VALIDATION for more than 100 filters. LIMIT_REACHED for more than 1,000 "
        "references to filters or messages (by default). LIMIT_REACHED also if `select` searches "
        "`text`, `body` or `header` of more than 2,000 messages. RATE_LIMITED if this search "
        "exceeds the caller's rate limit. UNAVAILABLE if `select` searches for words while more "
        "than 5,000 messages of the user are not indexed yet: retry later.",
        scope=Scope.MAIL,
        access=OWN,
    )
    async def filter_apply(self, info: Info, input: FilterApplyInput) -> TaskPayload:
        keys = ids_from_refs(info, input.filters, "filters")
        selection = input.select.to_validated_selector(info)
        task = await apply_task.queue_filter_run(info.context, keys, selection)
        return TaskPayload(task=Task.from_row(task))
