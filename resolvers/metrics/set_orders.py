"""Orders of sets of usage counters: by key, or by the value of a counter."""

from enum import StrEnum

from models.errors import InvalidInput
from models.metrics.names import NAMES_BY_TYPE, MetricName, MetricSetKind
from models.metrics.usage_recorder import Key
from models.store.keyset_pages import PageRequest, SortValue
from models.validation_constraints import ValidationConstraint


class MetricSetOrder(StrEnum):
    """The order of sets of counters."""

    KEY_ASC = "KEY_ASC"
    KEY_DESC = "KEY_DESC"
    COMMANDS_ASC = "COMMANDS_ASC"
    COMMANDS_DESC = "COMMANDS_DESC"
    COMMAND_ERRORS_ASC = "COMMAND_ERRORS_ASC"
    COMMAND_ERRORS_DESC = "COMMAND_ERRORS_DESC"
    COMMAND_TIME_ASC = "COMMAND_TIME_ASC"
    COMMAND_TIME_DESC = "COMMAND_TIME_DESC"
    SIGN_INS_ASC = "SIGN_INS_ASC"
    SIGN_INS_DESC = "SIGN_INS_DESC"
    SIGN_IN_FAILURES_ASC = "SIGN_IN_FAILURES_ASC"
    SIGN_IN_FAILURES_DESC = "SIGN_IN_FAILURES_DESC"
    MESSAGES_IN_ASC = "MESSAGES_IN_ASC"
    MESSAGES_IN_DESC = "MESSAGES_IN_DESC"
    BYTES_IN_ASC = "BYTES_IN_ASC"
    BYTES_IN_DESC = "BYTES_IN_DESC"
    MESSAGES_JUNK_ASC = "MESSAGES_JUNK_ASC"
    MESSAGES_JUNK_DESC = "MESSAGES_JUNK_DESC"
    VIRUSES_ASC = "VIRUSES_ASC"
    VIRUSES_DESC = "VIRUSES_DESC"
    MESSAGES_OUT_ASC = "MESSAGES_OUT_ASC"
    MESSAGES_OUT_DESC = "MESSAGES_OUT_DESC"
    BYTES_OUT_ASC = "BYTES_OUT_ASC"
    BYTES_OUT_DESC = "BYTES_OUT_DESC"
    MESSAGES_BOUNCED_ASC = "MESSAGES_BOUNCED_ASC"
    MESSAGES_BOUNCED_DESC = "MESSAGES_BOUNCED_DESC"

    @property
    def counter_name(self) -> MetricName | None:
        """The counter that the sets are sorted by; None if they are sorted by key."""
        name, _, _ = self.rpartition("_")
        return None if name == "KEY" else MetricName(name)

    @property
    def is_descending(self) -> bool:
        """True if the highest key or value is first."""
        return self.endswith("_DESC")


def require_counter_of_type(metric_type: MetricSetKind, order: MetricSetOrder) -> None:
    """Raise InvalidInput if sets of this type don't have the counter that they are sorted by."""
    names = NAMES_BY_TYPE[metric_type]
    if order.counter_name is not None and order.counter_name not in names:
        raise InvalidInput(
            f"{metric_type} has no counter {order.counter_name}.",
            constraint=ValidationConstraint.ENUM,
            path=["orderBy"],
            allowed_values=[
                order
                for order in MetricSetOrder
                if order.counter_name is None or order.counter_name in names
            ],
        )


def cursor_value(value: float, key: Key) -> str:
    """Return the sort value of the cursor of a set that is sorted by a counter, then by key."""
    return f"{value!r} {key}"


def sort_key_after_cursor_or_raise(
    page_request: PageRequest, order: MetricSetOrder, key_type: type[Key]
) -> tuple[SortValue, Key | int] | None:
    """Return the sort key of the cursor: the key and 0, or the value and the key. None without one.

    Raises InvalidInput for a cursor of another list.
    """
    if order.counter_name is None:
        key = page_request.cursor_sort_value(key_type)
        return None if key is None else (key, 0)
    text = page_request.cursor_sort_value(str)
    if text is None:
        return None
    value, _, key_text = text.partition(" ")
    try:
        return float(value), key_type(key_text)
    except ValueError:
        raise page_request.cursor_refusal() from None
