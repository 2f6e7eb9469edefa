"""The queries whose answers an archive stores, and their comparison with today's answers."""

from collections.abc import Sequence
from typing import Any

from graphql import (
    REMOVE,
    FieldNode,
    GraphQLSchema,
    TypeInfo,
    TypeInfoVisitor,
    Visitor,
    parse,
    print_ast,
    visit,
)

MESSAGE_FIELDS = """id subject preview text size receivedAt date seen flagged answered draft
  from { name address } to { name address } cc { name address } messageIdHeader inReplyTo
  references hasAttachments attachments { id filename contentType size } mailbox { path }
  threadId emailId imap { uid modseq flags } metadata pop3Uidl"""
PAGE = "first: 200"
MIN_STORED_VALUES = 1_000  # in the answers of an archive
MIN_COMPARED_SHARE = 0.95  # of them; the schema can lose a few fields

QUERIES_OF_USERS = (
    "{ viewer { role scopes user { id username name tags metadata messageCount createdAt "
    "twoFactorMethods retention active hasPassword forwardTo } } }",
    "{ viewer { user { mailboxes(" + PAGE + ") { nodes { id path specialUse messageCount "
    "unseenCount size uidNext uidValidity modseq subscribed retention objectId "
    "annotations { key value } shares { rights } } } } } }",
    "{ viewer { user { messages(" + PAGE + ") { nodes { " + MESSAGE_FIELDS + " } } } } }",
    "{ viewer { user { deletedMessages(" + PAGE + ") { nodes { id subject preview mailboxPath size "
    "deletedAt expiresAt receivedAt } } } } }",
    "{ viewer { user { addresses(" + PAGE + ") { nodes { id address name } } "
    "identities(" + PAGE + ") { nodes { id address name signatureText default } } "
    "labels { id keyword name color } savedSearches { id name } } } }",
    "{ viewer { user { filters(" + PAGE + ") { nodes { id name position active metadata "
    "querySummary { label value } actionSummary { label value } matchCount sieve } } "
    "sieveScripts(" + PAGE + ") { nodes { id name content active } } "
    "autoreply { enabled subject text interval } } } }",
    "{ viewer { user { connectors(" + PAGE + ") { nodes { id name host port protocol security "
    "username interval active } } files(" + PAGE + ") { nodes { id filename contentType size "
    "sha256 createdAt shares { id mode hasPassword } } } "
    "appPasswords(" + PAGE + ") { nodes { id description scopes } } } } }",
    "{ viewer { user { submissions(" + PAGE + ") { nodes { id queueId state "
    "recipients { recipient state attempts } } } } } }",
)
QUERIES_OF_ROOT = (
    "{ users(" + PAGE + ") { nodes { id username name role active tags messageCount } } }",
    "{ domains(" + PAGE + ") { nodes { id name description tags userCount addressCount } } }",
    "{ aliasDomains(" + PAGE + ") { nodes { id alias } } }",
    "{ addresses(" + PAGE + ") { nodes { id address name forwardTo } } }",
    "{ resources(" + PAGE + ") { nodes { id name address kind bookingPolicy bookingLimit } } }",
    "{ dkimKeys(" + PAGE + ") { nodes { id domain selector } } }",
    "{ legalHolds(" + PAGE + ") { nodes { id username reason messageCount state expiresAt } } }",
    "{ deletedUsers(" + PAGE + ") { nodes { id username userId recoverableAddresses } } }",
    "{ queue(" + PAGE + ") { nodes { id queueId sender size recipients { recipient state } } } }",
    "{ webhooks(" + PAGE + ") { nodes { id url types active } } }",
)


class _MissingFieldsRemover(Visitor):
    """Removes the fields that the schema doesn't have, and selection sets that become empty."""

    def __init__(self, type_info: TypeInfo) -> None:
        super().__init__()
        self._type_info = type_info

    def enter_field(self, _node: FieldNode, *_: Any) -> Any:
        return REMOVE if self._type_info.get_field_def() is None else None

    def leave_field(self, node: FieldNode, *_: Any) -> Any:
        has_no_fields = node.selection_set is not None and not node.selection_set.selections
        return REMOVE if has_no_fields else None


def document_of_existing_fields(document: str, schema: GraphQLSchema) -> str:
    """Return the document without the fields that the schema doesn't have."""
    type_info = TypeInfo(schema)
    visitor = TypeInfoVisitor(type_info, _MissingFieldsRemover(type_info))
    return print_ast(visit(parse(document), visitor))


def comparable_answer(stored: Any, current: Any) -> Any:
    """Return the stored values of the fields that the current answer has, sorted by ID."""
    if isinstance(stored, dict) and isinstance(current, dict):
        return {
            name: comparable_answer(stored[name], value)
            for name, value in current.items()
            if name in stored
        }
    if isinstance(stored, list) and isinstance(current, list) and len(stored) == len(current):
        pairs = zip(sorted_by_id(stored), sorted_by_id(current), strict=True)
        return [comparable_answer(one, other) for one, other in pairs]
    return stored


def require_most_values_compared(
    stored_answers: Sequence[Any], compared_answers: Sequence[Any]
) -> None:
    """Raise AssertionError if `comparable_answer` has left out too many stored values.

    A stored answer with values must keep some of them, and all answers together most of them.
    """
    stored = [_count_values(answer) for answer in stored_answers]
    compared = [_count_values(answer) for answer in compared_answers]
    for number, (stored_count, compared_count) in enumerate(zip(stored, compared, strict=True)):
        assert bool(stored_count) == bool(compared_count), f"answer {number}: no value is compared"
    assert sum(stored) >= MIN_STORED_VALUES, sum(stored)
    assert sum(compared) >= MIN_COMPARED_SHARE * sum(stored), (sum(compared), sum(stored))


def _count_values(answer: Any) -> int:
    """Count the scalars and nulls of an answer."""
    if isinstance(answer, dict):
        return sum(map(_count_values, answer.values()))
    if isinstance(answer, list):
        return sum(map(_count_values, answer))
    return 1


def sorted_by_id(value: Any) -> Any:
    """Sort lists of objects with an ID by it, since the default order of a list can change."""
    if isinstance(value, dict):
        return {name: sorted_by_id(member) for name, member in value.items()}
    if isinstance(value, list):
        members = [sorted_by_id(member) for member in value]
        if members and all(isinstance(member, dict) and "id" in member for member in members):
            return sorted(members, key=lambda member: str(member["id"]))
        return members
    return value
