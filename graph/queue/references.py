"""References to queue entries in inputs."""

from collections.abc import Sequence

import strawberry

from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.object_references import ObjectRef, resolve_ids_from_refs_or_raise
from resolvers.queue import loaders as queue_loaders


@strawberry.input(one_of=True, description="Reference to one queue entry.")
class QueueEntryRef(ObjectRef):
    queue_id: strawberry.Maybe[str] = attribute_field(
        "Queue ID of the queue entry, as it occurs in logs. Case is significant."
    )


async def resolve_queue_entry_ids_or_raise(
    info: Info, refs: Sequence[QueueEntryRef], *, path: str = "queueEntries"
) -> list[int]:
    """Return the row IDs of references to queue entries, in their order.

    Raises InvalidInput if an ID is malformed, NotFound if no visible entry has the queue ID.
    """
    return await resolve_ids_from_refs_or_raise(
        info,
        refs,
        path,
        name_field="queue_id",
        load_ids=queue_loaders.load_visible_waiting_ids_by_queue_id,
    )
