"""References to webhooks and push channels in inputs."""

import strawberry

from graph.types.errors import Options, attribute_field
from graph.types.object_references import ObjectRef


@strawberry.input(one_of=True, description="Reference to one webhook.")
class WebhookRef(ObjectRef):
    pass


@strawberry.input(one_of=True, description="Reference to one push channel.")
class PushChannelRef(ObjectRef):
    pass


@strawberry.input(description="Input of webhookDelete.")
class WebhookDeleteInput(Options):
    webhooks: list[WebhookRef] = attribute_field("Webhooks to delete, 1 to 1,000 by default.")


@strawberry.input(description="Input of webhookTest.")
class WebhookTestInput(Options):
    webhooks: list[WebhookRef] = attribute_field(
        "Webhooks that get a test event, 1 to 1,000 by default."
    )


@strawberry.input(description="Input of pushChannelDelete.")
class PushChannelDeleteInput(Options):
    push_channels: list[PushChannelRef] = attribute_field(
        "Push channels to delete, 1 to 1,000 by default."
    )


@strawberry.input(description="Input of pushChannelTest.")
class PushChannelTestInput(Options):
    push_channels: list[PushChannelRef] = attribute_field(
        "Push channels that get a sample notification, 1 to 1,000 by default."
    )
