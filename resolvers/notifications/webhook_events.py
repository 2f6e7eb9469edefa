"""Events of webhooks, and the facts that a webhook delivery contains.

Facts are ids and numbers, without message content or mailbox names. A receiver queries details
with its own rights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.auth.security_log import SECURITY_EVENT_TYPES
from models.events.event_types import EventType
from models.store.columns import ColumnRow

FACT_NAMES: Mapping[str, tuple[str, ...]] = {  # names in the journal, by prefix of the event type
    "MESSAGE_": ("mailbox", "uid", "flags", "fromMailbox", "fromUid"),
    "SUBMISSION_": ("state",),
    "USER_": ("changed",),
    "AUTOREPLY_": ("changed",),
    "SETTING_": ("key",),
    "LIMIT_": ("limitKind", "level", "used", "limit", "refused", "resetsAt"),
}


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """An event of one change, about one or many objects."""

    change: ColumnRow
    objects: Sequence[Mapping[str, Any]]  # each with its row id as `id`

    @property
    def event_id(self) -> str:
        """The unique id of the event."""
        return f"evt_{self.change.stream_id}_{self.change.last}"

    def stored_body(self, user: ColumnRow | None, domain_id: int | None) -> dict[str, Any]:
        """Return the stored body of a webhook delivery."""
        return {
            "user": user and {"id": user.id, "username": user.username},
            "domain": domain_id,
            "objects": list(self.objects),
            "origin": self.change.origin,
        }


def webhook_event_of_change_or_none(
    change: ColumnRow, security_rows: Mapping[int, ColumnRow]
) -> WebhookEvent | None:
    """Return the event of a change; None if webhooks don't receive it.

    `security_rows` are the security log rows it refers to, by id.
    """
    if change.type is EventType.RESYNC:
        return None
    if change.type not in SECURITY_EVENT_TYPES:
        return WebhookEvent(change, _object_facts(change))
    rows = [security_rows[key] for key in change.ids if key in security_rows]
    names = ("id", "action", "result", "protocol", "ip")
    objects = [
        {name: getattr(row, name) for name in names} | {"count": row._asdict()["count"]}
        for row in rows
    ]
    return WebhookEvent(change, objects) if objects else None  # the rows may be deleted


def _object_facts(change: ColumnRow) -> list[dict[str, Any]]:
    """Return id and facts of each object of a change. Values in lists belong to one object each."""
    names = next(
        (names for begin, names in FACT_NAMES.items() if change.type.startswith(begin)), ()
    )
    facts = {name: change.facts[name] for name in names if name in change.facts}
    return [
        {"id": key} | {n: v[nth] if isinstance(v, list) else v for n, v in facts.items()}
        for nth, key in enumerate(change.ids)
    ]
