"""References to threads in inputs."""

import strawberry

from graph.types.object_references import ObjectRef


@strawberry.input(one_of=True, description="Reference to one thread.")
class ThreadRef(ObjectRef):
    pass
