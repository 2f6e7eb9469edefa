"""References to stored files and their shares in inputs."""

import strawberry

from graph.types.object_references import ObjectRef


@strawberry.input(one_of=True, description="Names one stored file.")
class FileRef(ObjectRef):
    pass


@strawberry.input(one_of=True, description="Names one link to a stored file.")
class FileShareRef(ObjectRef):
    pass
