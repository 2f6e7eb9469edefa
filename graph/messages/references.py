"""References to threads and deleted messages in inputs."""

import strawberry

from graph.types.object_references import ObjectRef


@strawberry.input(one_of=True, description="Reference to one thread.")
class ThreadRef(ObjectRef):
    pass


@strawberry.input(one_of=True, description="Reference to one deleted message.")
class DeletedMessageRef(ObjectRef):
    pass
