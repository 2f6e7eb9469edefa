"""GraphQL type and query of the admin log."""

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types import global_ids
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import leaf
from graph.types.fields import Auth, Info, field, query
from graph.types.object_views import Made
from graph.types.references import UserRef, owner_of
from graph.types.row_mapping import Shape, columns, identified
from graph.types.scalars import IPAddress
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Role, Scope
from resolvers.admin import admin_log
from resolvers.admin.admin_log import EntryWhere


def _target(kind: str | None, key: int | None) -> strawberry.ID | None:
    """Return the global ID of the object that a mutation changed.

    None if there is no such object, or if its type has no global IDs.
    """
    return global_ids.encode(kind, key) if kind in global_ids.PREFIXES and key else None


@strawberry.type(
    description="Who changed what of others, or of the platform.",
    directives=[Auth(scope=Scope.READ)],
)
class AdminLogEntry(Shape):
    at: datetime = leaf("When.")
    actor: str = leaf("User name, or what the key is called; operator: at the machine itself.")
    role: Role = leaf("In effect then.")
    ip: IPAddress | None = leaf("From.")
    mutation: str = leaf("As the schema calls it.")
    target_id: strawberry.ID | None = leaf("What was changed, also after its deletion.")
    before: JSON | None = leaf("What it was, as far as it changed; secrets are hidden.")
    after: JSON | None = leaf("What it became, as far as it changed; secrets are hidden.")
    reason: str | None = leaf("What the caller gave as the reason.")

    batch = staticmethod(admin_log.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("AdminLogEntry"),
        "target_id": Made(("target_kind", "target_id"), _target),
    }

    @field(
        "What was changed, as it is now; null when gone or invisible.", "target_kind", "target_id"
    )
    async def target(self, info: Info) -> Shape | None:
        key = _target(self.row.target_kind, self.row.target_id)
        nodes = sys.modules["graph.nodes"]  # it imports this module
        if key is None or self.row.target_kind not in nodes.KINDS:
            return None
        target: Shape | None = await nodes.node_of(info, key)
        return target


@strawberry.type
class AdminLogQuery:
    @query(
        "Every administrative mutation, newest first, with before and after: those in the domains "
        "one administers, or all for ADMIN.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def admin_log(
        self,
        info: Info,
        actor: UserRef | None = UNSET,
        target_id: strawberry.ID | None = UNSET,
        mutation: str | None = UNSET,
        since: datetime | None = UNSET,
        until: datetime | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[AdminLogEntry]:
        where = EntryWhere(
            await _actor(info, actor),
            _decoded(target_id) if target_id else None,
            mutation or None,
            since or None,
            until or None,
        )
        ctx, requested_page = (
            info.context,
            page_asked(ordering(admin_log.NEWEST, where), first, after, last, before),
        )
        return await connected(
            info,
            AdminLogEntry,
            await admin_log.page(ctx, where, requested_page, columns(info, AdminLogEntry)),
            lambda row: Cursor(requested_page.ordering, row.at, row.id),
            lambda: admin_log.count(ctx, where),
        )


def _decoded(text: str) -> tuple[str, int]:
    """Return the type name and the row id of a global ID.

    Raises Invalid if it is not a global ID.
    """
    kind = global_ids.kind_of(text)
    return kind, global_ids.decode(kind, text, path="targetId")


async def _actor(info: Info, ref: UserRef | None) -> int | None:
    """Return the id of the account that acted, or None if no account is named.

    An account that is deleted or not visible to the viewer can only be named by its id.
    """
    if not ref:
        return None
    if ref.id:
        return global_ids.decode("User", ref.id.value, path="actor")
    return await owner_of(info, ref) or admin_log.NONE
