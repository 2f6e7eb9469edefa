"""References to webhooks and push channels in inputs."""

import strawberry

from graph.types.object_references import ObjectRef


@strawberry.input(one_of=True, description="Names one webhook.")
class WebhookRef(ObjectRef):
    pass
