"""`Message.imap` reads columns of the message's row, in a list without another statement."""

from typing import Any

import pytest

from graph.types import global_ids
from tests.conftest import GraphQLClient, deliver_to
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation

LIST = '{ viewer { user { mailbox(by: {path: "INBOX"}) { messages(first: 50) { %s } } } } }'
MESSAGE = "query ($id: ID!) { message(by: {id: $id}) { imap { uid modseq flags deleted } } }"
ROW_FIELDS = "nodes { imap { uid modseq flags deleted } }"
EXECUTIONS = 3  # parsed, then compiled, then from the cached plan


def message_columns(statements: list[str]) -> set[str]:
    """Return the part of the page's SELECT that names the columns, split in words."""
    (page,) = [text for text in statements if "FROM messages" in text and "LIMIT" in text]
    return set(page.partition("FROM")[0].replace('"', "").replace(",", " ").split())


async def list_inbox(client: GraphQLClient, selection: str) -> list[Any]:
    """List the messages of the inbox with these fields."""
    mailbox = (await client(LIST % selection))["viewer"]["user"]["mailbox"]
    nodes: list[Any] = mailbox["messages"]["nodes"]
    return nodes


async def test_imap_has_the_values_of_the_row(ada_by_executor: GraphQLClient) -> None:
    inserted = await deliver_to(ada_by_executor)
    patch = {"seen": True, "deleted": True, "addFlags": ["Blue"]}
    payload = await run_message_mutation(
        ada_by_executor, "messageUpdate", select=inbox_selection("1"), set=patch
    )
    assert payload["errors"] == []
    expected = {
        "uid": inserted.uid,
        "modseq": inserted.modseq + 1,
        "flags": ["\\Seen", "\\Deleted", "Blue"],
        "deleted": True,
    }
    message_id = global_ids.encode("Message", inserted.message_id)
    for _ in range(EXECUTIONS):
        message = (await ada_by_executor(MESSAGE, id=message_id))["message"]
        assert message == {"imap": expected}
        assert await list_inbox(ada_by_executor, ROW_FIELDS) == [{"imap": expected}]


async def test_aliases_and_fragments_of_imap_are_merged(ada_by_executor: GraphQLClient) -> None:
    inserted = await deliver_to(ada_by_executor)
    selection = (
        "nodes { imap { number: uid } ... on Message { imap { deleted __typename } } "
        "again: imap { flags seq } }"
    )
    for _ in range(EXECUTIONS):
        assert await list_inbox(ada_by_executor, selection) == [
            {
                "imap": {"number": inserted.uid, "deleted": False, "__typename": "MessageImap"},
                "again": {"flags": [], "seq": 1},
            }
        ]


@pytest.mark.parametrize(
    ("selection", "read_columns", "unread_columns"),
    [
        ("nodes { imap { uid } }", {"uid"}, {"modseq", "keywords", "deleted", "preview"}),
        ("nodes { imap { modseq deleted } }", {"modseq", "deleted"}, {"uid", "keywords"}),
        ("nodes { imap { flags } }", {"seen", "deleted", "keywords"}, {"modseq", "uid"}),
        ("edges { node { imap { uid } } } nodes { imap { seq } }", {"uid"}, {"keywords"}),
    ],
)
async def test_list_reads_only_the_columns_of_selected_imap_fields(
    ada: GraphQLClient,
    statements: list[str],
    selection: str,
    read_columns: set[str],
    unread_columns: set[str],
) -> None:
    await deliver_to(ada)
    for _ in range(EXECUTIONS):
        del statements[:]
        await ada(LIST % selection)
        names = {name.removeprefix("messages.") for name in message_columns(statements)}
        assert read_columns <= names
        assert not unread_columns & names


async def test_imap_costs_no_points_but_those_of_its_fields(ada: GraphQLClient) -> None:
    async def cost_of(selection: str) -> int:
        answer = await ada.execute(LIST % selection)
        requested: int = answer["extensions"]["cost"]["requested"]
        return requested

    expected = await cost_of("nodes { id }")
    assert await cost_of(ROW_FIELDS) == expected
    assert await cost_of("nodes { imap { uid seq } }") > expected


async def test_imap_needs_no_statement_of_its_own(
    ada: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements(selection: str) -> int:
        for _ in range(EXECUTIONS):
            del statements[:]
            await list_inbox(ada, selection)
        return len([statement for statement in statements if "api_keys" not in statement])

    await deliver_to(ada)
    expected = await count_statements("nodes { id }")
    assert await count_statements(ROW_FIELDS) == expected
    with_sequence_number = await count_statements("nodes { imap { uid seq } }")
    assert with_sequence_number == expected + 1
    for _ in range(20):
        await deliver_to(ada)
    assert await count_statements(ROW_FIELDS) == expected
    assert await count_statements("nodes { imap { uid seq } }") == with_sequence_number
