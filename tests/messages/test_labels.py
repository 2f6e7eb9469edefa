"""Test labels: names and colors of keywords, and message counts."""

from typing import Any

import pytest

from models.events.journal import ChangeKind
from tests.conftest import GraphQLClient, deliver_to
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.stores.counter_check import load_journal_entries, load_stream_position

LABEL_SET = """
mutation ($input: LabelSetInput!) { labelSet(input: $input) {
  labels { id keyword name color total unseen }
  errors { __typename code path message ... on ValidationError { constraint } } } }
"""
LABELS_QUERY = "{ viewer { user { labels { id keyword name color total unseen } } } }"
MESSAGE_LABELS_QUERY = """{ viewer { user { messages(first: 50, orderBy: RECEIVED_ASC) { nodes {
  subject labels { name color } } } } } }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def set_label(client: GraphQLClient, keyword: str, **fields: Any) -> Any:
    return (await client(LABEL_SET, input={"keyword": keyword, **fields}))["labelSet"]


async def load_labels(client: GraphQLClient) -> list[Any]:
    labels: list[Any] = (await client(LABELS_QUERY))["viewer"]["user"]["labels"]
    return labels


async def add_keywords(client: GraphQLClient, uids: str, *keywords: str) -> None:
    await run_message_mutation(
        client, "messageUpdate", select=inbox_selection(uids), set={"addFlags": list(keywords)}
    )


async def test_label_is_created_changed_and_deleted(ada_with_mail: GraphQLClient) -> None:
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    (created,) = (await set_label(ada_with_mail, "work"))["labels"]
    assert (created["keyword"], created["name"], created["color"]) == ("work", "work", None)
    for fields, expected in (
        ({"name": " Work ", "color": "#1E90FF"}, ("Work", "#1e90ff")),
        ({}, ("Work", "#1e90ff")),
        ({"name": "Jobs"}, ("Jobs", "#1e90ff")),
        ({"color": None}, ("Jobs", None)),
    ):
        (label,) = (await set_label(ada_with_mail, "WORK", **fields))["labels"]
        assert (label["id"], label["keyword"]) == (created["id"], "work")
        assert (label["name"], label["color"]) == expected
    document = "query ($id: ID!) { node(id: $id) { ... on Label { name } } }"
    assert (await ada_with_mail(document, id=created["id"]))["node"] == {"name": "Jobs"}
    assert (await set_label(ada_with_mail, "work", delete=True))["labels"] == []
    kinds = [
        kind
        for kind, _ in await load_journal_entries(
            ada_with_mail.environment, ada_with_mail.user.id, last
        )
    ]
    assert kinds == [ChangeKind.LABEL_CHANGED] * 5
    (error,) = (await set_label(ada_with_mail, "work", delete=True))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["keyword"])


async def test_messages_show_labels_and_labels_have_counts(ada_with_mail: GraphQLClient) -> None:
    await set_label(ada_with_mail, "work", name="Work", color="#ff0000")
    await set_label(ada_with_mail, "fun", name="A bit of fun")
    await set_label(ada_with_mail, "none")
    await add_keywords(ada_with_mail, "1:2", "Work", "other")
    await add_keywords(ada_with_mail, "2", "fun")
    await run_message_mutation(
        ada_with_mail, "messageUpdate", select=inbox_selection("1"), set={"seen": True}
    )
    nodes = (await ada_with_mail(MESSAGE_LABELS_QUERY))["viewer"]["user"]["messages"]["nodes"]
    work, fun = {"name": "Work", "color": "#ff0000"}, {"name": "A bit of fun", "color": None}
    assert [node["labels"] for node in nodes] == [[work], [fun, work], []]
    counts = {
        label["keyword"]: (label["total"], label["unseen"])
        for label in await load_labels(ada_with_mail)
    }
    assert counts == {"fun": (1, 1), "none": (0, 0), "work": (2, 1)}
    await run_message_mutation(ada_with_mail, "messageDelete", select=inbox_selection("2"))
    counts = {
        label["keyword"]: (label["total"], label["unseen"])
        for label in await load_labels(ada_with_mail)
    }
    assert counts == {"fun": (0, 0), "none": (0, 0), "work": (1, 0)}
    await set_label(ada_with_mail, "work", delete=True)
    query = '{ messages(query: "label:work") { totalCount } }'
    assert (await ada_with_mail(query))["messages"]["totalCount"] == 1  # the keyword remains


@pytest.mark.parametrize(
    ("arguments", "path", "constraint"),
    [
        ({"keyword": ""}, ["keyword"], "pattern"),
        ({"keyword": "two words"}, ["keyword"], "pattern"),
        ({"keyword": "\\Seen"}, ["keyword"], "pattern"),
        ({"keyword": "k" * 129}, ["keyword"], "pattern"),
        ({"name": " "}, ["name"], "required"),
        ({"name": "n" * 129}, ["name"], "length"),
        ({"color": "red"}, ["color"], "pattern"),
        ({"color": "#12345"}, ["color"], "pattern"),
        ({"delete": True, "name": "x"}, ["delete"], "exclusive"),
    ],
)
async def test_invalid_label_is_refused(
    ada: GraphQLClient, arguments: dict[str, Any], path: list[str], constraint: str
) -> None:
    answer = (await ada(LABEL_SET, input={"keyword": "work", **arguments}))["labelSet"]
    assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(path, constraint)]
    assert await load_labels(ada) == []


async def test_label_over_limit_is_refused(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.messages.labels.MAX_LABELS", 2)
    for keyword in ("a", "b", "a"):
        assert (await set_label(ada, keyword, name="x"))["errors"] == []
    (error,) = (await set_label(ada, "c"))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["keyword"])


async def test_labels_of_another_user_are_hidden(
    ada_with_mail: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    await set_label(ada_with_mail, "work", name="Work")
    await add_keywords(ada_with_mail, "1", "work")
    (ada_label,) = await load_labels(ada_with_mail)
    await deliver_to(bob, "z")
    await add_keywords(bob, "1", "work")
    nodes = (await bob(MESSAGE_LABELS_QUERY))["viewer"]["user"]["messages"]["nodes"]
    assert (await load_labels(bob), nodes[0]["labels"]) == ([], [])
    (error,) = (await set_label(bob, "work", delete=True))["errors"]
    assert error["code"] == "NOT_FOUND"
    await set_label(bob, "work", name="Bob's")
    assert await load_labels(ada_with_mail) == [ada_label]
    assert (await bob("query ($id: ID!) { node(id: $id) { id } }", id=ada_label["id"]))[
        "node"
    ] is None
    document = '{ user(by: {username: "ada"}) { labels { name } } }'
    assert (await root(document))["user"] == {"labels": []}


async def test_label_statement_count_is_independent_of_label_count(
    ada_with_mail: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements() -> int:
        del statements[:]
        await ada_with_mail(LABELS_QUERY)
        await ada_with_mail(MESSAGE_LABELS_QUERY)
        return len([statement for statement in statements if "api_keys" not in statement])

    await set_label(ada_with_mail, "k0")
    await add_keywords(ada_with_mail, "1", "k0")
    expected = await count_statements()
    for n in range(1, 20):
        await set_label(ada_with_mail, f"k{n}")
        await deliver_to(ada_with_mail, f"n{n}")
        await add_keywords(ada_with_mail, "1:*", f"k{n}")
    assert [await count_statements(), await count_statements()] == [expected, expected]
