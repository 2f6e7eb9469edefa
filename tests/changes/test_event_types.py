"""The types of events: each is recorded, and each can come where it is offered."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.auth.security_log import SAME_NAMED_EVENT_TYPES, SecurityEventAction
from models.events.event_types import (
    ACCOUNT_EVENT_TYPES,
    WEBHOOK_ONLY_EVENT_TYPES,
    ChangeType,
    EventType,
)
from resolvers.auth.security_log import REPORTED_ACTIONS
from tests.conftest import GraphQLClient
from tests.support.schema.printed_schema import SDL

REPOSITORY = Path(__file__).parents[2]
LAYERS = ("graph", "mail", "merganser", "models", "resolvers")
# Modules that only read events or list them.
READERS = {
    "models/events/event_types.py",
    "resolvers/notifications/live_notifications.py",
    "resolvers/changes/event_folding.py",
}
NAMES_OF_VALUES = {"PASSWORD_CHANGED", "FORWARDING_CHANGED"}  # attributes, which aren't created
CHANGES = """query ($after: Cursor!, $types: [ChangeType!]) {
  changes(after: $after, types: $types) { events { type } } }"""


def used_members(class_name: str, ignored: set[str]) -> Iterator[str]:
    """Yield the members of an enum that modules of the server name."""
    for layer in LAYERS:
        for path in (REPOSITORY / layer).rglob("*.py"):
            code = path.read_text(encoding="utf-8")
            if str(path.relative_to(REPOSITORY)) in ignored or f"{class_name}." not in code:
                continue
            for node in ast.walk(ast.parse(code)):
                match node:
                    case ast.Attribute(ast.Name(name), attribute) if name == class_name:
                        yield attribute


def test_every_event_type_is_recorded_by_some_module() -> None:
    assert set(used_members("EventType", READERS)) == set(EventType)


def test_every_action_of_the_security_log_is_recorded_by_some_module() -> None:
    ignored = {"models/auth/security_log.py"}
    uses = list(used_members("SecurityEventAction", ignored))
    for action in REPORTED_ACTIONS:
        uses.remove(action)  # the list of the actions that users get a message about
    assert set(uses) == set(SecurityEventAction)


def test_events_of_the_security_log_have_the_names_of_actions() -> None:
    assert set(SecurityEventAction) >= SAME_NAMED_EVENT_TYPES


@pytest.mark.parametrize("name", ["EventType", "SecurityEventAction"])
def test_every_value_says_what_happened(name: str) -> None:
    values = SDL.type_map[name].values  # type: ignore[attr-defined]
    changed = {value for value in values if value.endswith("_CHANGED")}
    assert changed - {"ALLOWED_SENDERS_CHANGED", "IDENTITY_BCC_CHANGED"} == NAMES_OF_VALUES


def test_changes_offers_the_types_of_accounts() -> None:
    offered = set(SDL.type_map["ChangeType"].values)  # type: ignore[attr-defined]
    assert offered == set(ChangeType) == ACCOUNT_EVENT_TYPES
    assert offered.isdisjoint(WEBHOOK_ONLY_EVENT_TYPES)


async def test_changes_accepts_every_offered_type_and_refuses_others(ada: GraphQLClient) -> None:
    after = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    data = await ada(CHANGES, after=after, types=sorted(ChangeType))
    assert data == {"changes": {"events": []}}
    for refused in (EventType.PING, EventType.CHANGES_MISSED, EventType.FILTER_MATCHED):
        response = await ada.execute(CHANGES, after=after, types=[refused])
        assert refused in response["errors"][0]["message"]
