"""The page of event types."""

from graphql import GraphQLEnumType, GraphQLSchema

from models.events.event_types import WEBHOOK_ONLY_EVENT_TYPES
from tests.support.reference.markdown import cell, table

INTRODUCTION = """\
# Events

The journal, the subscription `changes`, webhooks, notifications and push use one list of event
types. [Subscriptions](../api/subscriptions.md) and
[Webhooks](../api/webhooks.md) explain how to receive them.
"""


def events_page(schema: GraphQLSchema) -> str:
    """The page with the meaning of each event type."""
    types = schema.type_map["EventType"]
    assert isinstance(types, GraphQLEnumType)
    rows = (
        (f"`{name}`", "webhooks" if name in WEBHOOK_ONLY_EVENT_TYPES else "all", cell(text))
        for name, text in ((name, value.description or "") for name, value in types.values.items())
    )
    return "\n".join([INTRODUCTION, *table(("Type", "Sent to", "Meaning"), rows)])
