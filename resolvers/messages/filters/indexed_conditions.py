"""The conditions of message filters for which the database has indexes."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from mail.storage.message_flags import FORWARDED_KEYWORD, fold_keyword
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.filters.sequence_sets import is_small_set

# Conditions whose index has the messages in the order of lists, the rarest state first. The table
# of keywords has those with a keyword.
ORDERED_STATES = (
    ("snoozed", True),
    ("draft", True),
    ("deleted", True),
    ("flagged", True),
    ("answered", True),
    ("seen", False),
)
TIMES_OF_ORDER = ("received_since", "received_before")  # ranges of the order itself


def required_parts(conditions: MessageConditions) -> Iterator[MessageConditions]:
    """Yield the filter and those in it that all its messages match."""
    yield conditions
    for nested in conditions.every or ():
        yield from required_parts(nested)


def has_key_condition(conditions: MessageConditions) -> bool:
    """True if the filter requires messages of a thread, IDs, or few UIDs."""
    return any(
        part.thread_id is not None or part.email_ids is not None or is_small_set(part.uids or "*")
        for part in required_parts(conditions)
    )


def required_mailboxes(conditions: MessageConditions) -> list[MailboxSelector]:
    """Return the mailboxes in all of which the filter requires its messages."""
    return [part.mailbox for part in required_parts(conditions) if part.mailbox]


def required_keyword(conditions: MessageConditions) -> tuple[str, Any] | None:
    """Return the first condition of the filter that requires a keyword, as name and value."""
    for part in required_parts(conditions):
        if part.keyword:
            return "keyword", part.keyword
        if part.forwarded:
            return "forwarded", True
    return None


def selects_all_unseen(conditions: MessageConditions) -> bool:
    """True if the only condition is that messages are unseen."""
    parts = list(required_parts(conditions))
    return (
        any(part.seen is False for part in parts)
        and all(part.every != () and part.seen is not True for part in parts)
        and all(part._replace(every=None, seen=None).is_empty for part in parts)
    )


class IndexedConditions(NamedTuple):
    """A filter in three parts, for a search along an index in the order of lists.

    `ordered` has at most one state, so that all of it has the same index, and times. If the table
    of keywords is searched, it is empty.
    """

    keyword: str | None  # in lower case, as in the table
    ordered: MessageConditions
    rest: MessageConditions


def split_ordered_conditions(conditions: MessageConditions) -> IndexedConditions:
    """Split a filter into conditions of an index in the order of lists, and the others."""
    parts = list(required_parts(conditions))
    keyword = required_keyword(conditions)
    if keyword:
        rest = without_required(conditions, [keyword])
        return IndexedConditions(_folded_keyword(*keyword), MessageConditions(), rest)
    states = _required_states(parts)[:1]
    times = [
        (name, value)
        for part in parts
        for name in TIMES_OF_ORDER
        if (value := getattr(part, name)) is not None
    ]
    ranges = tuple(MessageConditions(**{name: value}) for name, value in times)
    ordered = MessageConditions(every=ranges or None, **dict(states))
    return IndexedConditions(None, ordered, without_required(conditions, [*states, *times]))


def _required_states(parts: Sequence[MessageConditions]) -> list[tuple[str, Any]]:
    """Return the states that these conditions require, such as `seen` False, the rarest first."""
    return [
        (name, value)
        for name, value in ORDERED_STATES
        if any(getattr(part, name) is value for part in parts)
    ]


def _folded_keyword(name: str, value: Any) -> str:
    """Return the keyword that a condition requires, in the form of the table."""
    return FORWARDED_KEYWORD if name == "forwarded" else fold_keyword(value)


def without_required(
    conditions: MessageConditions, removed: Collection[tuple[str, Any]]
) -> MessageConditions:
    """Return the filter without these required conditions, given as names and values."""
    unset = {name: None for name, value in removed if getattr(conditions, name) == value}
    every = conditions.every
    if every:
        parts = [without_required(part, removed) for part in every]
        every = tuple(part for part in parts if not part.is_empty) or None
    return conditions._replace(every=every, **unset)
