"""GraphQL type and query of the admin log."""

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField
from graph.types.references import UserRef, load_user_or_viewer_id
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from graph.types.scalars import IPAddress
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.admin import audit_log
from resolvers.admin.audit_log import AuditLogConditions, AuditLogOrder


def _target_global_id(type_name: str | None, row_id: int | None) -> strawberry.ID | None:
    """Return the global ID of the object that a mutation changed.

    None if there is no such object, or if its type has no global IDs.
    """
    return (
        global_ids.encode(type_name, row_id)
        if type_name in global_ids.PREFIXES and row_id
        else None
    )


@strawberry.type(
    description="Entry of the audit log: a change that an administrator made to another account, "
    "a domain or the platform.",
    directives=[Auth(scope=Scope.READ)],
)
class AuditLogEntry(NodeView):
    at: datetime = attribute_field("Time of the change.")
    actor: str = attribute_field(
        "Username or name of the API key that made the change; `operator` for a command on the "
        "server."
    )
    role: Role = attribute_field("Role of the actor at that time.")
    ip: IPAddress | None = attribute_field("IP address of the actor.")
    mutation: str = attribute_field("Name of the mutation, such as `userUpdate`.")
    target_id: strawberry.ID | None = attribute_field(
        "Global ID of the changed object, which may have been deleted."
    )
    before: JSON | None = attribute_field("Old values of the changed fields. Secrets are redacted.")
    after: JSON | None = attribute_field("New values of the changed fields. Secrets are redacted.")
    reason: str | None = attribute_field("Reason that the caller gave in `options`.")

    load_batch = staticmethod(audit_log.load_visible_entries_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("AuditLogEntry"),
        "target_id": DerivedField(("target_kind", "target_id"), _target_global_id),
    }

    @field(
        "Changed object with its current values. Null: it was deleted, or the caller can't see it.",
        "target_kind",
        "target_id",
    )
    async def target(self, info: Info) -> NodeView | None:
        key = _target_global_id(self.row.target_kind, self.row.target_id)
        nodes = sys.modules["graph.nodes"]  # it imports this module
        if key is None or self.row.target_kind not in nodes.NODE_TYPES:
            return None
        target: NodeView | None = await nodes.load_node(info, key)
        return target


@strawberry.input(description="Conditions for entries of the audit log. All of them must hold.")
class AuditLogFilter(ConditionsInput):
    actor: UserRef | None = attribute_field(
        "Entries of mutations that this account ran. A deleted account can only be referred to "
        "by its ID.",
        default=UNSET,
    )
    mutation: str | None = attribute_field(
        "Name of the mutation, such as `userUpdate`, at most 128 printable characters.",
        default=UNSET,
    )
    target_id: strawberry.ID | None = attribute_field(
        "Global ID of the changed object, which may be deleted.", default=UNSET
    )
    since: datetime | None = attribute_field("Entries at this time or later.", default=UNSET)
    before: datetime | None = attribute_field("Entries before this time.", default=UNSET)

    async def resolve_conditions(self, info: Info) -> AuditLogConditions:
        """Convert the filter to conditions of the resolvers. Raises InvalidInput for a bad ID."""
        return AuditLogConditions(
            await _actor_user_id(info, self.actor),
            _decode_target_type_and_id(self.target_id) if self.target_id else None,
            self.mutation or None,
            self.since or None,
            self.before or None,
        )


@strawberry.type
class AuditLogQuery:
    @query(
        "Returns entries of the audit log with old and new values. A DOMAIN_ADMIN sees entries "
        "of the administered domains, an ADMIN all except entries about legal holds of "
        "others, a ROOT all.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def audit_log(
        self,
        info: Info,
        filter: AuditLogFilter | None = UNSET,
        order_by: AuditLogOrder = AuditLogOrder.CREATED_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[AuditLogEntry]:
        conditions = await filter.resolve_conditions(info) if filter else AuditLogConditions()
        ctx, list_order = info.context, audit_log.LIST_ORDERS[order_by]
        list_ordering = ordering_name(f"auditlog-{order_by}", conditions)
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            AuditLogEntry,
            await audit_log.read_entry_page(
                ctx, conditions, requested_page, selected_columns(info, AuditLogEntry), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: audit_log.count_entries(ctx, conditions),
        )


def _decode_target_type_and_id(global_id: str) -> tuple[str, int]:
    """Return the type name and the row id of a global ID.

    Raises Invalid if it is not a global ID.
    """
    kind = global_ids.type_name_of(global_id)
    return kind, global_ids.decode(kind, global_id, path=("filter", "targetId"))


async def _actor_user_id(info: Info, user_ref: UserRef | None) -> int | None:
    """Return the id of the account that acted, or None if no account is named.

    An account that is deleted or not visible to the viewer can only be named by its id.
    """
    if not user_ref:
        return None
    if user_ref.id:
        return global_ids.decode("User", user_ref.id.value, path=("filter", "actor", "id"))
    return await load_user_or_viewer_id(info, user_ref) or audit_log.NO_USER_ID
