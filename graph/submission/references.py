"""References to compose requests, identities and submissions in inputs."""

from collections.abc import Sequence

import strawberry

from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.object_references import (
    ObjectRef,
    resolve_id_from_ref_or_raise,
    resolve_ids_from_refs_or_raise,
)
from resolvers.submission import loaders as submission_loaders


@strawberry.input(one_of=True, description="Reference to one identity.")
class IdentityRef(ObjectRef):
    pass


@strawberry.input(one_of=True, description="Reference to one compose request.")
class ComposeRequestRef(ObjectRef):
    pass


@strawberry.input(one_of=True, description="Reference to one submission.")
class SubmissionRef(ObjectRef):
    queue_id: strawberry.Maybe[str] = attribute_field(
        "Queue ID of the submission, as in logs and in `Submission.queueId`."
    )


async def resolve_submission_ids_or_raise(info: Info, refs: Sequence[SubmissionRef]) -> list[int]:
    """Return the row IDs of references to submissions of the viewer, in their order.

    Raises InvalidInput if an ID is malformed, NotFound if no submission has the queue ID.
    """
    return await resolve_ids_from_refs_or_raise(
        info,
        refs,
        "submissions",
        name_field="queue_id",
        load_ids=submission_loaders.load_own_ids_by_queue_id,
    )


async def resolve_submission_id_or_raise(info: Info, ref: SubmissionRef, path: str) -> int:
    """Return the row ID of one reference, as `load_submission_ids` does for several."""
    return await resolve_id_from_ref_or_raise(
        info,
        ref,
        path,
        name_field="queue_id",
        load_ids=submission_loaders.load_own_ids_by_queue_id,
    )
