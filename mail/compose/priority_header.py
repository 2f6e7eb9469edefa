"""The priority that the sender gives a message in its header."""

from collections.abc import Iterable

from mail.compose.message_draft import Priority
from mail.mime import DecodedField

_PRIORITIES_BY_FIELD = {  # by field name and beginning of the value; the first usable field counts
    "x-priority": {
        **dict.fromkeys(("1", "2"), Priority.HIGH),
        "3": Priority.NORMAL,
        **dict.fromkeys(("4", "5"), Priority.LOW),
    },
    "importance": {  # RFC 4021, section 2.1.51
        "high": Priority.HIGH,
        "normal": Priority.NORMAL,
        "low": Priority.LOW,
    },
}


def priority_from_header_fields(fields: Iterable[DecodedField]) -> Priority:
    """Return the priority of a message: that of X-Priority, else of Importance.

    Of several fields with one name, the last counts. A field with another value is ignored.
    """
    last_values = {header_field.name.lower(): header_field.value for header_field in fields}
    for name, priority_by_value in _PRIORITIES_BY_FIELD.items():
        value = last_values.get(name, "").strip().lower()
        key = value[:1] if name == "x-priority" else value
        if priority := priority_by_value.get(key):
            return priority
    return Priority.NORMAL
