"""The page of event types."""

from graphql import GraphQLEnumType, GraphQLSchema

from models.events.event_types import ACCOUNT_EVENT_TYPES, EventType
from resolvers.changes.managed_streams import DOMAIN_CHANGE_EVENT_TYPES
from tests.support.reference.markdown import cell, table

INTRODUCTION = """\
# Events

The journal, subscriptions, webhooks, notifications and push use one list of event types. The
security log has the same names as actions. [Subscriptions](../api/subscriptions.md) and
[Webhooks](../api/webhooks.md) explain how to receive them.
"""


def events_page(schema: GraphQLSchema) -> str:
    """The page with the meaning of each event type."""
    types = schema.type_map["EventType"]
    assert isinstance(types, GraphQLEnumType)
    rows = (
        (f"`{name}`", _receivers(EventType(name)), cell(text))
        for name, text in ((name, value.description or "") for name, value in types.values.items())
    )
    return "\n".join([INTRODUCTION, *table(("Type", "Sent to", "Meaning"), rows)])


def _receivers(event_type: EventType) -> str:
    """The fields and services that return an event of this type."""
    receivers = ["webhooks"] if event_type is not EventType.RESYNC else []
    if event_type in DOMAIN_CHANGE_EVENT_TYPES or event_type is EventType.RESYNC:
        receivers.insert(0, "`domainChanges`")
    if event_type in ACCOUNT_EVENT_TYPES:
        receivers.insert(0, "`changes`")
    return ", ".join(receivers)
