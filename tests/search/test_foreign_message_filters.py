"""Test filters over other users' mail: only ROOT can test what administrators can't read."""

from typing import Any

import httpx
import pytest
from strawberry.types import get_object_definition

from graph.messages.filter_inputs import FIELD_BY_JSON_NAME, GROUP_JSON_NAMES
from graph.messages.mime_parts import READ_REFUSAL
from graph.messages.types import Message
from graph.types.global_ids import encode
from mail.search import index_worker
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from tests.conftest import GraphQLClient, deliver_to, make_client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import share_mailbox
from tests.support.operations.bulk_operations import run_message_mutation
from tests.support.stores.counter_check import select_rows

INBOX = {"path": "INBOX"}
PAST = {"ago": "P1D"}
CONTENT_FILTERS: dict[str, dict[str, Any]] = {  # by field
    "query": {"query": "secret"},
    "text": {"text": "secret"},
    "body": {"body": "secret"},
    "subject": {"subject": "secret"},
    "header": {"header": {"name": "Subject"}},
    "attachment": {"attachment": {"filename": "secret"}},
}
RECORD_FILTERS: dict[str, dict[str, Any]] = {  # by field
    **{name: {name: "a"} for name in ("from", "to", "toOrCc", "cc", "bcc", "anyRecipient")},
    **{name: {name: "a"} for name in ("listId", "messageIdHeader", "keyword")},
    **{name: {name: True} for name in ("searchable", "seen", "flagged", "answered", "draft")},
    **{name: {name: True} for name in ("deleted", "forwarded", "snoozed", "hasAttachment")},
    **{name: {name: PAST} for name in ("receivedSince", "receivedBefore", "sentSince")},
    **{name: {name: PAST} for name in ("sentBefore", "savedSince", "savedBefore")},
    "expiresBefore": {"expiresBefore": PAST},
    **{name: {"mailbox": INBOX, name: "1"} for name in ("uids", "seqs")},
    **{name: {name: 1} for name in ("larger", "smaller", "modifiedSince")},
    "mailbox": {"mailbox": INBOX},
    "mailboxes": {"mailboxes": [INBOX]},
    "mailboxPatterns": {"mailboxPatterns": ["IN*"]},
    "thread": {"thread": {"id": encode("Thread", 1)}},
    "emailIds": {"emailIds": ["0" * 32]},
    "tier": {"tier": "HOT"},
    "submissionStates": {"submissionStates": ["SCHEDULED"]},
}
# the field of a message that a condition tests, if its name is not that of the condition
MESSAGE_FIELDS = {"attachment": "attachments", "listId": "mailingList", "hasAttachment": ""}
LIST_SELECTIONS = (
    'user(by: {username: "ada"}) { messages(filter: $filter) { totalCount } }',
    'user(by: {username: "ada"}) { deletedMessages(filter: $filter) { totalCount } }',
    'user(by: {username: "ada"}) { mailbox(by: {path: "INBOX"}) { '
    "messages(filter: $filter) { totalCount } } }",
    'messages(users: {usernames: ["ada"]}, filter: $filter) { totalCount }',
    "thread(by: {id: $thread}) { messages(filter: $filter) { totalCount } }",
)
SHARED_INBOX_QUERY = """
query ($id: ID!, $filter: MessageFilter!) {
  mailbox(by: {id: $id}) { messages(filter: $filter) { totalCount } } }
"""


@pytest.fixture
async def thread_id(ada: GraphQLClient, environment: Environment) -> str:
    """The global ID of the thread of a message of Ada."""
    await deliver_to(ada, raw_message("secret", body="secret"))
    await index_worker.index_next_batch_and_record_contacts(environment)
    ((key,),) = await select_rows(environment, "SELECT thread_id FROM messages")
    return encode("Thread", key)


@pytest.fixture
async def administrators(
    ada: GraphQLClient, admin_client: GraphQLClient, http: httpx.AsyncClient
) -> list[GraphQLClient]:
    """Administrators below ROOT who see Ada's mail as records."""
    permissions = [AdminPermission.IMPERSONATE]
    return [admin_client, await make_domain_admin(ada.environment, http, "here", permissions)]


def nested_filters(condition: dict[str, Any]) -> list[dict[str, Any]]:
    """Return filters that contain the condition at each place."""
    return [
        condition,
        {"and": [{"seen": False}, condition]},
        {"or": [{"seen": False}, condition]},
        {"not": {"not": condition}},
    ]


async def is_any_refused(
    client: GraphQLClient, thread_id: str, condition: dict[str, Any], *selections: str
) -> bool:
    """True if one of these lists is FORBIDDEN with this filter. There is no other error.

    An error of a filter ends all lists of its batch, so a single list needs its own request.
    """
    lists = " ".join(f"list{number}: {text}" for number, text in enumerate(selections))
    variable = ", $thread: ID!" if "$thread" in lists else ""
    document = f"query ($filter: MessageFilter!{variable}) {{ {lists} }}"
    answer = await client.execute(document, filter=condition, thread=thread_id)
    errors = answer.get("errors", ())
    assert {error["extensions"]["code"] for error in errors} <= {"FORBIDDEN"}, errors
    return bool(errors)


async def is_selection_refused(client: GraphQLClient, condition: dict[str, Any]) -> bool:
    """True if a bulk mutation with this filter is FORBIDDEN. There is no other error."""
    payload = await run_message_mutation(
        client,
        "messageUpdate",
        select={"users": {"usernames": ["ada"]}, "filter": condition},
        set={"flagged": True},
        options={"validateOnly": True},
    )
    codes = {error["code"] for error in payload["errors"]}
    assert codes <= {"FORBIDDEN"}, payload
    return bool(codes)


def test_each_condition_is_on_content_or_on_the_record() -> None:
    conditions = FIELD_BY_JSON_NAME.keys() - {*GROUP_JSON_NAMES, "not"}
    assert conditions == CONTENT_FILTERS.keys() | RECORD_FILTERS.keys()
    descriptions = {
        field.name or field.python_name: field.description or ""
        for field in get_object_definition(Message, strict=True).fields
    }
    for name in conditions:
        key = MESSAGE_FIELDS.get(name, name)
        if text := descriptions.get(FIELD_BY_JSON_NAME.get(key, key), descriptions.get(key)):
            assert (READ_REFUSAL in text) is (name in CONTENT_FILTERS), name


async def test_administrator_cannot_filter_by_content(
    administrators: list[GraphQLClient], thread_id: str
) -> None:
    for client in administrators:
        for name, condition in CONTENT_FILTERS.items():
            for message_filter in nested_filters(condition):
                for selection in LIST_SELECTIONS:
                    is_refused = await is_any_refused(client, thread_id, message_filter, selection)
                    assert is_refused, (name, selection)
                assert await is_selection_refused(client, message_filter), name
        answer = await client.execute(
            '{ messages(users: {usernames: ["ada"]}, query: "secret") { totalCount } }'
        )
        assert [error["extensions"]["code"] for error in answer["errors"]] == ["FORBIDDEN"]


async def test_administrator_can_filter_by_the_record(
    administrators: list[GraphQLClient], thread_id: str
) -> None:
    all_conditions = {"or": [*RECORD_FILTERS.values(), {"query": "from:carol is:unread"}]}
    for client in administrators:
        for condition in (all_conditions, {"not": all_conditions}):
            assert not await is_any_refused(client, thread_id, condition, *LIST_SELECTIONS)
            assert not await is_selection_refused(client, condition), condition


async def test_owner_can_use_all_conditions(ada: GraphQLClient, thread_id: str) -> None:
    all_conditions = {"or": [*CONTENT_FILTERS.values(), *RECORD_FILTERS.values()]}
    for condition in (all_conditions, {"not": all_conditions}):
        assert not await is_any_refused(ada, thread_id, condition, *LIST_SELECTIONS)
        assert not await is_selection_refused(ada, condition), condition


async def test_filter_of_root_by_content_is_logged(
    root: GraphQLClient, ada: GraphQLClient, thread_id: str
) -> None:
    query = "SELECT sum(count) FROM security_events WHERE user_id = :u AND action = :a"
    document = """query ($filter: MessageFilter!) {
      messages(users: {usernames: ["ada"]}, filter: $filter, first: 0) { totalCount } }"""

    async def count_logged_reads() -> int:
        ((count,),) = await select_rows(ada.environment, query, u=ada.user.id, a="MESSAGES_READ")
        return count or 0

    for name, condition in {**CONTENT_FILTERS, **RECORD_FILTERS}.items():
        before = await count_logged_reads()
        await root(document, filter=condition)
        assert (await count_logged_reads() > before) is (name in CONTENT_FILTERS), name
    for condition in CONTENT_FILTERS.values():
        assert not await is_any_refused(root, thread_id, condition, *LIST_SELECTIONS)


@pytest.mark.usefixtures("thread_id")
async def test_administrator_filters_a_shared_mailbox_by_content(
    ada: GraphQLClient, administrators: list[GraphQLClient]
) -> None:
    ((mailbox_id,),) = await select_rows(
        ada.environment,
        "SELECT id FROM mailboxes WHERE path = 'INBOX' AND user_id = :u",
        u=ada.user.id,
    )
    global_id = encode("Mailbox", mailbox_id)
    for client in administrators:
        assert await share_mailbox(ada, client, "READ", path="INBOX") == []
        for condition in CONTENT_FILTERS.values():
            await client(SHARED_INBOX_QUERY, id=global_id, filter=condition)
            in_mailbox = {**condition, "mailbox": {"id": global_id}}
            assert not await is_selection_refused(client, in_mailbox)
            assert await is_selection_refused(client, condition)
            document = """query ($filter: MessageFilter!) {
              user(by: {username: "ada"}) { deletedMessages(filter: $filter) { totalCount } } }"""
            answer = await client.execute(document, filter=in_mailbox)
            assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_filter_of_own_mail_by_content_needs_no_other_statements(
    environment: Environment, http: httpx.AsyncClient, statements: list[str]
) -> None:
    admin = await make_client(environment, http, "boss", role=Role.ADMIN)
    await deliver_to(admin, "secret")
    document = "query ($filter: MessageFilter!) { messages(filter: $filter) { nodes { id } } }"
    counts = []
    for condition in ({"from": "carol"}, {"subject": "secret"}):
        for _ in range(2):
            del statements[:]
            page = (await admin(document, filter=condition))["messages"]
            assert len(page["nodes"]) == 1
        counts.append(len(statements))
    assert counts[0] == counts[1]
