"""GraphQL type and query of the audit log."""

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
from graph.types.logged_ids import audit_log_values_with_global_ids
from graph.types.object_access import DOMAINS
from graph.types.object_views import DerivedField
from graph.types.references import UserRef, load_visible_user_id
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
    description=(
        "Entry of the audit log. It is a change that an administrator made to another account, a "
        "domain or the platform. Or it is a read of the bytes of a stored object."
    ),
    directives=[Auth(scope=Scope.READ)],
)
class AuditLogEntry(NodeView):
    at: datetime = attribute_field("Time of the change.")
    actor: str = attribute_field(
        "Username, at that time, of the user who made the change. `key NAME`: an API key of the "
        "platform. `operator`: a command on the server, or the bootstrap key. `identity provider "
        "of DOMAIN`: the sign-in of a user there."
    )
    role: Role = attribute_field("Role of the actor at that time.")
    ip: IPAddress | None = attribute_field(
        "IP address that the change was made from. Null: unknown."
    )
    mutation: str = attribute_field(
        "Name of the mutation that made the change, such as `userUpdate`, or of the field that "
        "returned bytes: `Blob.text` or `Blob.url`."
    )
    target_id: strawberry.ID | None = attribute_field(
        "Global ID of the changed object, which may have been deleted. Null: the change is not "
        "about one object with a global ID, such as that of a setting."
    )
    before: JSON | None = attribute_field(
        "Old values of the changed fields. Secrets are redacted, and texts over 1,000 characters "
        "truncated. Some objects are given by global ID. Null: none were recorded, as for a new "
        "object."
    )
    after: JSON | None = attribute_field(
        "New values of the changed fields. Secrets are redacted, and texts over 1,000 characters "
        "truncated. Some objects are given by global ID. Null: none were recorded, as for a "
        "deletion."
    )
    reason: str | None = attribute_field(
        "Reason that the caller gave in `MutationOptions.reason`. Null: none."
    )

    load_batch = staticmethod(audit_log.load_visible_entries_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("AuditLogEntry"),
        "target_id": DerivedField(("target_kind", "target_id"), _target_global_id),
        "before": DerivedField(("before",), audit_log_values_with_global_ids),
        "after": DerivedField(("after",), audit_log_values_with_global_ids),
    }

    @field(
        "Changed object with its current values. Null: it was deleted, the caller can't see it, "
        "or the change is not about one object with a global ID.",
        "target_kind",
        "target_id",
    )
    async def target(self, info: Info) -> NodeView | None:
        key = _target_global_id(self.row.target_kind, self.row.target_id)
        nodes = sys.modules["graph.nodes"]  # it imports this module
        if key is None or self.row.target_kind not in nodes.NODE_TYPES:
            return None
        target: NodeView | None = await nodes.load_visible_node(info, key)
        return target


@strawberry.input(description="Conditions on entries of the audit log. All must hold.")
class AuditLogFilter(ConditionsInput):
    actor: UserRef | None = attribute_field(
        "Returns only entries of changes that this account made. A deleted account can only be "
        "referred to by its ID. A username or address without a user whom the caller can see "
        "returns no entry.",
        default=UNSET,
    )
    mutation: str | None = attribute_field(
        "Returns only entries whose `mutation` is exactly this name, such as `userUpdate`. Case "
        "matters. At most 128 printable characters; more are an error.",
        default=UNSET,
    )
    target_id: strawberry.ID | None = attribute_field(
        "Returns only entries about the object with this global ID, which may be deleted.",
        default=UNSET,
    )
    since: datetime | None = attribute_field(
        "Returns only entries at this time or later.", default=UNSET
    )
    before: datetime | None = attribute_field(
        "Returns only entries before this time.", default=UNSET
    )

    async def resolve_conditions_or_match_nothing(self, info: Info) -> AuditLogConditions:
        """Convert the filter to conditions of the resolvers. Raises InvalidInput for a bad ID."""
        return AuditLogConditions(
            await _actor_user_id_or_unmatchable_id(info, self.actor),
            _decode_target_type_and_id(self.target_id) if self.target_id else None,
            self.mutation or None,
            self.since or None,
            self.before or None,
        )


@strawberry.type
class AuditLogQuery:
    @query(
        "Returns entries of the audit log: changes that administrators, API keys of the platform "
        "and commands on the server made. They concern other accounts, domains and the platform. "
        "Reads of the bytes of stored objects are entries, too. Entries are kept for 365 days by "
        "default. A DOMAIN_ADMIN sees entries of the administered domains and their accounts. An "
        "ADMIN sees all except changes of legal holds by others. A ROOT sees all.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
        access=DOMAINS,
    )
    async def audit_log(
        self,
        info: Info,
        filter: AuditLogFilter | None = UNSET,
        order_by: AuditLogOrder = AuditLogOrder.AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[AuditLogEntry]:
        conditions = (
            await filter.resolve_conditions_or_match_nothing(info)
            if filter
            else AuditLogConditions()
        )
        ctx, list_order = info.context, audit_log.LIST_ORDERS[order_by]
        list_ordering = ordering_name(f"auditlog-{order_by}", conditions)
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            AuditLogEntry,
            await audit_log.read_visible_audit_log_page(
                ctx, conditions, requested_page, selected_columns(info, AuditLogEntry), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: audit_log.count_visible_audit_log_entries(ctx, conditions),
        )


def _decode_target_type_and_id(global_id: str) -> tuple[str, int]:
    """Return the type name and the row id of a global ID.

    Raises InvalidInput if it is not a global ID.
    """
    kind = global_ids.type_name_of_global_id(global_id)
    return kind, global_ids.decode(kind, global_id, path=("filter", "targetId"))


async def _actor_user_id_or_unmatchable_id(info: Info, user_ref: UserRef | None) -> int | None:
    """Return the id of the account that acted, or None if no account is named.

    An account that is deleted or not visible to the viewer can only be named by its id.
    """
    if not user_ref:
        return None
    if user_ref.id:
        return global_ids.decode("User", user_ref.id.value, path=("filter", "actor", "id"))
    return await load_visible_user_id(info, user_ref) or audit_log.NO_USER_ID
