"""Labels: names and colours of keywords, and how many messages have them."""

from typing import Any

import pytest

from models.events.journal import ChangeKind
from tests.conftest import Client, receive
from tests.support.operations.bulk_operations import call, inbox
from tests.support.stores.counter_check import journal, reached

SET = """
mutation ($input: LabelSetInput!) { labelSet(input: $input) {
  labels { id keyword name color total unseen }
  errors { __typename code path message ... on ValidationError { constraint } } } }
"""
LIST = "{ viewer { user { labels { id keyword name color total unseen } } } }"
SHOWN = """{ viewer { user { messages(first: 50, orderBy: RECEIVED_ASC) { nodes {
  subject labels { name color } } } } } }"""
pytestmark = pytest.mark.usefixtures("examined")


async def put(client: Client, keyword: str, **given: Any) -> Any:
    return (await client(SET, input={"keyword": keyword, **given}))["labelSet"]


async def listed(client: Client) -> list[Any]:
    found: list[Any] = (await client(LIST))["viewer"]["user"]["labels"]
    return found


async def tag(client: Client, uids: str, *names: str) -> None:
    await call(client, "messageUpdate", select=inbox(uids), set={"addFlags": list(names)})


async def test_a_label_is_made_changed_and_removed(post: Client) -> None:
    last = await reached(post.world, post.user.id)
    (made,) = (await put(post, "work"))["labels"]
    assert (made["keyword"], made["name"], made["color"]) == ("work", "work", None)
    for given, now in (
        ({"name": " Work ", "color": "#1E90FF"}, ("Work", "#1e90ff")),
        ({}, ("Work", "#1e90ff")),
        ({"name": "Jobs"}, ("Jobs", "#1e90ff")),
        ({"color": None}, ("Jobs", None)),
    ):
        (label,) = (await put(post, "WORK", **given))["labels"]
        assert (label["id"], label["keyword"]) == (made["id"], "work")
        assert (label["name"], label["color"]) == now
    document = "query ($id: ID!) { node(id: $id) { ... on Label { name } } }"
    assert (await post(document, id=made["id"]))["node"] == {"name": "Jobs"}
    assert (await put(post, "work", delete=True))["labels"] == []
    kinds = [kind for kind, _ in await journal(post.world, post.user.id, last)]
    assert kinds == [ChangeKind.LABEL_CHANGED] * 5
    (error,) = (await put(post, "work", delete=True))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["keyword"])


async def test_messages_show_their_labels_and_labels_are_counted(post: Client) -> None:
    await put(post, "work", name="Work", color="#ff0000")
    await put(post, "fun", name="A bit of fun")
    await put(post, "none")
    await tag(post, "1:2", "Work", "other")
    await tag(post, "2", "fun")
    await call(post, "messageUpdate", select=inbox("1"), set={"seen": True})
    nodes = (await post(SHOWN))["viewer"]["user"]["messages"]["nodes"]
    work, fun = {"name": "Work", "color": "#ff0000"}, {"name": "A bit of fun", "color": None}
    assert [node["labels"] for node in nodes] == [[work], [fun, work], []]
    found = {one["keyword"]: (one["total"], one["unseen"]) for one in await listed(post)}
    assert found == {"fun": (1, 1), "none": (0, 0), "work": (2, 1)}
    await call(post, "messageDelete", select=inbox("2"))
    found = {one["keyword"]: (one["total"], one["unseen"]) for one in await listed(post)}
    assert found == {"fun": (0, 0), "none": (0, 0), "work": (1, 0)}
    await put(post, "work", delete=True)
    query = '{ messages(query: "label:work") { totalCount } }'
    assert (await post(query))["messages"]["totalCount"] == 1  # the keyword is there still


@pytest.mark.parametrize(
    ("given", "path", "constraint"),
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
async def test_what_no_label_can_be_is_refused(
    ada: Client, given: dict[str, Any], path: list[str], constraint: str
) -> None:
    answer = (await ada(SET, input={"keyword": "work", **given}))["labelSet"]
    assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(path, constraint)]
    assert await listed(ada) == []


async def test_an_account_has_so_many_labels(ada: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resolvers.messages.labels.MAX_LABELS", 2)
    for keyword in ("a", "b", "a"):
        assert (await put(ada, keyword, name="x"))["errors"] == []
    (error,) = (await put(ada, "c"))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["keyword"])


async def test_another_user_sees_and_changes_nothing(
    post: Client, bob: Client, root: Client
) -> None:
    await put(post, "work", name="Work")
    await tag(post, "1", "work")
    (mine,) = await listed(post)
    await receive(bob, "z")
    await tag(bob, "1", "work")
    nodes = (await bob(SHOWN))["viewer"]["user"]["messages"]["nodes"]
    assert (await listed(bob), nodes[0]["labels"]) == ([], [])
    (error,) = (await put(bob, "work", delete=True))["errors"]
    assert error["code"] == "NOT_FOUND"
    await put(bob, "work", name="Bob's")
    assert await listed(post) == [mine]
    assert (await bob("query ($id: ID!) { node(id: $id) { id } }", id=mine["id"]))["node"] is None
    document = '{ user(by: {username: "ada"}) { labels { name } } }'
    assert (await root(document))["user"] == {"labels": []}


async def test_many_labels_cost_no_more_statements_than_one(
    post: Client, statements: list[str]
) -> None:
    async def cost() -> int:
        del statements[:]
        await post(LIST)
        await post(SHOWN)
        return len([sent for sent in statements if "api_keys" not in sent])

    await put(post, "k0")
    await tag(post, "1", "k0")
    few = await cost()
    for n in range(1, 20):
        await put(post, f"k{n}")
        await receive(post, f"n{n}")
        await tag(post, "1:*", f"k{n}")
    assert [await cost(), await cost()] == [few, few]
