"""Mutations that create many filters: from a list, or from a file."""

import strawberry

from graph.admin.tasks import Task, TaskPayload
from graph.filters.inputs import FiltersCreateFromFileInput, FiltersCreateInput, NewFilterInput
from graph.filters.operations import FiltersPayload
from graph.filters.types import Filter
from graph.types import global_ids
from graph.types.fields import Info
from graph.types.list_inputs import convert_list_items
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import require_visible_user_id_if_named, value_or_none
from models.errors import require_found
from models.users.roles import AdminPermission, Role, Scope
from resolvers.filters import bulk_create, file_create
from resolvers.filters import loaders as filter_loaders
from resolvers.filters.bulk_create import NewFilter
from resolvers.transfer import record_tasks


@strawberry.type
class FiltersCreateMutation:
    @mutation(
        "Creates filters in one transaction: all or none. The rules are those of `filterCreate`, "
        "and the preceding filters of the list count for the limits and for the default position. "
        "LIMIT_REACHED if a user would have more than 400 filters (by default). QUOTA_EXCEEDED if "
        "`metadata` does not fit into the storage quota of the user. If one filter has an error, "
        "its path begins with `filters` and the position of the filter, from 0.",
        scope=Scope.SETTINGS,
        access=MANAGED.with_permissions(AdminPermission.FILTERS).with_scope(Scope.FULL),
    )
    async def filters_create(self, info: Info, input: FiltersCreateInput) -> FiltersPayload:
        bulk_create.require_filter_count_within_limit(len(input.filters))

        async def convert(filter_input: NewFilterInput) -> NewFilter:
            owner = await require_visible_user_id_if_named(info, filter_input.user or None)
            return NewFilter(owner, filter_input.to_column_values())

        converted = await convert_list_items(input.filters, convert)
        keys = await bulk_create.create_filters(info.context, converted.values, converted.errors)
        rows = await info.context.load_many(filter_loaders.load_visible_by_ids, keys)
        return FiltersPayload(filters=[Filter.from_row(require_found(row)) for row in rows])

    @mutation(
        "Creates filters of users from a CSV or JSON Lines file in a background task, in the "
        "order of the file. As with `filterCreate`, a DOMAIN_ADMIN with the permission FILTERS "
        "can name a USER of an administered domain. An ADMIN can name any user without the role "
        "ROOT. A refused line does not stop the task. A caller has at most 2 unfinished tasks of "
        "this kind: LIMIT_REACHED. A credential without a user is FORBIDDEN. `Task.result` has "
        "the counts `createdCount` and `refusedCount`, and `errors` with line, code, path and "
        "message of the first 1,000 errors. After a crash the task continues where it was.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
    )
    async def filters_create_from_file(
        self, info: Info, input: FiltersCreateFromFileInput
    ) -> TaskPayload:
        upload = global_ids.decode("Upload", input.file, path="file")
        task = await record_tasks.queue_record_task(
            info.context, file_create.FILTERS_CREATE, upload, value_or_none(input.format)
        )
        return TaskPayload(task=Task.from_row_or_none(task))
