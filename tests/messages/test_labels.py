"""Test labels: names and colors of keywords, and message counts."""

from typing import Any

import pytest

from models.events.event_types import EventType
from tests.conftest import GraphQLClient, deliver_to
from tests.support.case_loop import each_case
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.stores.counter_check import load_journal_entries, load_stream_position

LABEL_FIELDS = "{ id keyword name color messageCount unseenCount }"
ERROR_FIELDS = "errors { __typename code path message ... on ValidationError { constraint } }"
LABEL_CREATE = f"""mutation ($input: LabelCreateInput!) {{ labelCreate(input: $input) {{
  label {LABEL_FIELDS} {ERROR_FIELDS} }} }}"""
LABEL_UPDATE = f"""mutation ($input: LabelUpdateInput!) {{ labelUpdate(input: $input) {{
  labels {LABEL_FIELDS} {ERROR_FIELDS} }} }}"""
LABEL_DELETE = f"""mutation ($input: LabelDeleteInput!) {{ labelDelete(input: $input) {{
  deletedIds {ERROR_FIELDS} }} }}"""
LABELS_QUERY = "{ viewer { user { labels { id keyword name color messageCount unseenCount } } } }"
MESSAGE_LABELS_QUERY = """{ viewer { user { messages(first: 50, orderBy: RECEIVED_AT_ASC) { nodes {
  subject labels { name color } } } } } }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def create_label(client: GraphQLClient, keyword: str, **fields: Any) -> Any:
    return (await client(LABEL_CREATE, input={"keyword": keyword, **fields}))["labelCreate"]


async def update_labels(client: GraphQLClient, *refs: dict[str, str], **fields: Any) -> Any:
    return (await client(LABEL_UPDATE, input={"labels": refs, "set": fields}))["labelUpdate"]


async def delete_labels(client: GraphQLClient, *refs: dict[str, str]) -> Any:
    return (await client(LABEL_DELETE, input={"labels": refs}))["labelDelete"]


async def load_labels(client: GraphQLClient) -> list[Any]:
    labels: list[Any] = (await client(LABELS_QUERY))["viewer"]["user"]["labels"]
    return labels


async def add_keywords(client: GraphQLClient, uids: str, *keywords: str) -> None:
    await run_message_mutation(
        client, "messageUpdate", select=inbox_selection(uids), set={"addFlags": list(keywords)}
    )


async def test_label_is_created_changed_and_deleted(ada_with_mail: GraphQLClient) -> None:
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    created = (await create_label(ada_with_mail, "work"))["label"]
    assert (created["keyword"], created["name"], created["color"]) == ("work", "work", None)
    for fields, expected in (
        ({"name": " Work ", "color": "#1E90FF"}, ("Work", "#1e90ff")),
        ({"name": "Jobs"}, ("Jobs", "#1e90ff")),
        ({"color": None}, ("Jobs", None)),
    ):
        (label,) = (await update_labels(ada_with_mail, {"keyword": "WORK"}, **fields))["labels"]
        assert (label["id"], label["keyword"]) == (created["id"], "work")
        assert (label["name"], label["color"]) == expected
    document = "query ($id: ID!) { node(id: $id) { ... on Label { name } } }"
    assert (await ada_with_mail(document, id=created["id"]))["node"] == {"name": "Jobs"}
    (error,) = (await create_label(ada_with_mail, "Work"))["errors"]
    assert (error["code"], error["path"]) == ("CONFLICT", ["keyword"])
    deleted = await delete_labels(ada_with_mail, {"keyword": "Work"})
    assert deleted == {"deletedIds": [created["id"]], "errors": []}
    assert await load_labels(ada_with_mail) == []
    kinds = [
        kind
        for kind, _ in await load_journal_entries(
            ada_with_mail.environment, ada_with_mail.user.id, last
        )
    ]
    updates = [EventType.LABEL_UPDATED] * 3
    assert kinds == [EventType.LABEL_CREATED, *updates, EventType.LABEL_DELETED]
    (error,) = (await delete_labels(ada_with_mail, {"keyword": "work"}))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["labels", "0"])
    (error,) = (await update_labels(ada_with_mail, {"id": created["id"]}, name="x"))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["labels", "0", "id"])


async def test_messages_show_labels_and_labels_have_counts(ada_with_mail: GraphQLClient) -> None:
    await create_label(ada_with_mail, "work", name="Work", color="#ff0000")
    await create_label(ada_with_mail, "fun", name="A bit of fun")
    await create_label(ada_with_mail, "none")
    await add_keywords(ada_with_mail, "1:2", "Work", "other")
    await add_keywords(ada_with_mail, "2", "fun")
    await run_message_mutation(
        ada_with_mail, "messageUpdate", select=inbox_selection("1"), set={"seen": True}
    )
    nodes = (await ada_with_mail(MESSAGE_LABELS_QUERY))["viewer"]["user"]["messages"]["nodes"]
    work, fun = {"name": "Work", "color": "#ff0000"}, {"name": "A bit of fun", "color": None}
    assert [node["labels"] for node in nodes] == [[work], [fun, work], []]
    counts = {
        label["keyword"]: (label["messageCount"], label["unseenCount"])
        for label in await load_labels(ada_with_mail)
    }
    assert counts == {"fun": (1, 1), "none": (0, 0), "work": (2, 1)}
    await run_message_mutation(ada_with_mail, "messageDelete", select=inbox_selection("2"))
    counts = {
        label["keyword"]: (label["messageCount"], label["unseenCount"])
        for label in await load_labels(ada_with_mail)
    }
    assert counts == {"fun": (0, 0), "none": (0, 0), "work": (1, 0)}
    await delete_labels(ada_with_mail, {"keyword": "work"})
    query = '{ messages(query: "label:work") { totalCount } }'
    assert (await ada_with_mail(query))["messages"]["totalCount"] == 1  # the keyword remains


async def test_invalid_label_is_refused(ada: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], list[str], str]] = [
        ({"keyword": ""}, ["keyword"], "PATTERN"),
        ({"keyword": "two words"}, ["keyword"], "PATTERN"),
        ({"keyword": "\\Seen"}, ["keyword"], "PATTERN"),
        ({"keyword": "k" * 129}, ["keyword"], "PATTERN"),
        ({"name": " "}, ["name"], "REQUIRED"),
        ({"name": "n" * 129}, ["name"], "LENGTH"),
        ({"color": "red"}, ["color"], "PATTERN"),
        ({"color": "#12345"}, ["color"], "PATTERN"),
    ]
    for case in each_case(cases):
        with case as (arguments, path, constraint):
            answer = await create_label(ada, **{"keyword": "work", **arguments})
            assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(path, constraint)]
            assert await load_labels(ada) == []


async def test_label_over_limit_is_refused(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.messages.labels.MAX_LABELS", 2)
    for keyword in ("a", "b"):
        assert (await create_label(ada, keyword, name="x"))["errors"] == []
    (error,) = (await create_label(ada, "c"))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["keyword"])


async def test_labels_of_another_user_are_hidden(
    ada_with_mail: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    await create_label(ada_with_mail, "work", name="Work")
    await add_keywords(ada_with_mail, "1", "work")
    (ada_label,) = await load_labels(ada_with_mail)
    await deliver_to(bob, "z")
    await add_keywords(bob, "1", "work")
    nodes = (await bob(MESSAGE_LABELS_QUERY))["viewer"]["user"]["messages"]["nodes"]
    assert (await load_labels(bob), nodes[0]["labels"]) == ([], [])
    for ref in ({"keyword": "work"}, {"id": ada_label["id"]}):
        for answer in (await delete_labels(bob, ref), await update_labels(bob, ref, name="x")):
            (error,) = answer["errors"]
            assert (error["code"], error["path"][:2]) == ("NOT_FOUND", ["labels", "0"])
    await create_label(bob, "work", name="Bob's")
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

    await create_label(ada_with_mail, "k0")
    await add_keywords(ada_with_mail, "1", "k0")
    expected = await count_statements()
    for n in range(1, 20):
        await create_label(ada_with_mail, f"k{n}")
        await deliver_to(ada_with_mail, f"n{n}")
        await add_keywords(ada_with_mail, "1:*", f"k{n}")
    assert [await count_statements(), await count_statements()] == [expected, expected]


async def test_labels_are_changed_all_or_none(ada: GraphQLClient) -> None:
    for keyword in ("a", "b"):
        await create_label(ada, keyword)
    before = await load_labels(ada)
    missing = {"keyword": "c"}
    for answer in (
        await update_labels(ada, {"keyword": "a"}, missing, color="#ff0000"),
        await delete_labels(ada, {"keyword": "a"}, missing),
    ):
        (error,) = answer["errors"]
        assert (error["code"], error["path"]) == ("NOT_FOUND", ["labels", "1"])
    assert await load_labels(ada) == before
    answer = await update_labels(ada, {"keyword": "b"}, {"id": before[0]["id"]}, color="#ff0000")
    assert [(label["keyword"], label["color"]) for label in answer["labels"]] == [
        ("b", "#ff0000"),
        ("a", "#ff0000"),
    ]
    for fields, path in (({"name": " "}, "name"), ({"color": "red"}, "color")):
        (error,) = (await update_labels(ada, {"keyword": "a"}, **fields))["errors"]
        assert error["path"] == ["set", path]


async def test_update_without_new_values_is_refused(ada: GraphQLClient) -> None:
    await create_label(ada, "work", name="Work")
    answer = await update_labels(ada, {"keyword": "work"})
    assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(["set"], "REQUIRED")]
