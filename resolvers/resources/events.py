"""Record changes of resources in the journal and the audit log."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from models.events.event_types import EventType
from resolvers.context import Context
from resolvers.users.validation import schema_name

LOGGED_COLUMNS = ("name", "kind", "booking_policy", "booking_limit", "active")


async def journal_resource_changes(
    ctx: Context, session: AsyncSession, event_type: EventType, resources: Iterable[Any]
) -> None:
    """Record an event of resources in the streams of their domains, which must be locked."""
    ids_by_domain: defaultdict[int, list[int]] = defaultdict(list)
    for row in resources:
        ids_by_domain[row.domain_id].append(row.id)
    changes = {domain_id: [(event_type, ids)] for domain_id, ids in ids_by_domain.items()}
    await ctx.record_changes(session, changes)


def logged_resource_values(
    resource: Any, column_names: Sequence[str] = LOGGED_COLUMNS
) -> dict[str, Any]:
    """Return columns of a resource for the audit log, by their GraphQL name."""
    return {schema_name(name): getattr(resource, name) for name in column_names}
