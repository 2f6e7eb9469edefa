"""Leave out events that a later event of the same object makes superfluous."""

from collections.abc import Sequence

from models.events.event_types import EventType
from models.events.journal import JournalEvent

FOLDABLE_TYPES = frozenset(
    {EventType.MESSAGE_UPDATED, EventType.SUBMISSION_UPDATED, EventType.TASK_UPDATED}
)
# facts whose value in the last change replaces earlier ones
LAST_VALUE_FACTS = frozenset({"modseq", "flags"})


def drop_superseded_events(events: Sequence[JournalEvent]) -> Sequence[JournalEvent]:
    """Return the events without those that a later event of the same object makes superfluous.

    Such events have the same type and origin, and differ only in LAST_VALUE_FACTS.
    """
    if len(events) == 1:
        return events
    kept_events, event_keys = list[JournalEvent](), set[tuple[object, ...]]()
    for event in reversed(events):
        if event.type in FOLDABLE_TYPES:
            compared_facts = sorted(
                fact_item
                for fact_item in event.facts.items()
                if fact_item[0] not in LAST_VALUE_FACTS
            )
            event_key = (
                event.type,
                event.stream_id,
                event.object_id,
                event.origin,
                repr(compared_facts),
            )
            if event_key in event_keys:
                continue
            event_keys.add(event_key)
        kept_events.append(event)
    return kept_events[::-1]
