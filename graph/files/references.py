"""References to stored files and their shares in inputs."""

import strawberry

from graph.types.object_references import ObjectRef


@strawberry.input(one_of=True, description="Reference to one stored file.")
class FileRef(ObjectRef):
    pass


@strawberry.input(one_of=True, description="Reference to one link to a stored file.")
class FileShareRef(ObjectRef):
    pass
