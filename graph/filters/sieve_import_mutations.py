"""Mutation that creates filters from a Sieve script."""

import strawberry
from strawberry import UNSET

from graph.filters.operations import FiltersPayload
from graph.filters.types import Filter
from graph.types.access_grants import GIVES_ACCESS
from graph.types.errors import Options, Warning, attribute_field  # noqa: A004 - the outline's word
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import UserRef, require_visible_user_id_if_named
from models.errors import require_found
from models.users.roles import AdminPermission, Scope
from models.warning_codes import WarningCode
from resolvers.filters import loaders as filter_loaders
from resolvers.filters import sieve_import


@strawberry.input(description="Input of filterImport.")
class FilterImportInput(Options):
    user: UserRef | None = attribute_field(
        "Owner of the filters. Default: the signed-in user.", default=UNSET
    )
    content: str = attribute_field(
        "Sieve script (RFC 5228), at most 64 KiB.", metadata=GIVES_ACCESS
    )
    replace: bool = attribute_field(
        "True deletes all filters of the user first. False adds the new filters after the "
        "existing ones. Default: false.",
        default=False,
    )


@strawberry.type
class FilterImportMutation:
    @mutation(
        "Creates active filters from a Sieve script, all or none. The script itself is not "
        "stored. The new filters follow the existing ones; with `replace`, all existing filters "
        "are deleted first. SIEVE_COMPILE if the script does not compile; the error has line and "
        "column. VALIDATION if no filter can express a command, or if a mailbox does not exist. "
        "The message of this error begins with line and column. If a filter can express a command "
        "only approximately, it is created, and `warnings` of the payload has FILTER_DIFFERS. "
        "LIMIT_REACHED if the user would have more than 400 filters (by default).",
        scope=Scope.SETTINGS,
        access=MANAGED.with_permissions(AdminPermission.FILTERS).with_scope(Scope.FULL),
    )
    async def filter_import(self, info: Info, input: FilterImportInput) -> FiltersPayload:
        ctx, owner = info.context, await require_visible_user_id_if_named(info, input.user or None)
        imported = await sieve_import.import_script(
            ctx, owner, input.content, replaces_existing=bool(input.replace)
        )
        rows = await ctx.load_many(filter_loaders.load_visible_by_ids, list(imported.filter_ids))
        return FiltersPayload(
            filters=[Filter.from_row(require_found(row)) for row in rows],
            warnings=[
                Warning(
                    code=WarningCode.FILTER_DIFFERS,
                    message=sieve_import.text_with_position(warning),
                    path=["content"],
                )
                for warning in imported.warnings
            ],
        )
