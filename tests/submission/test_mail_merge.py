"""Mail merge: one message for each entry, all or none, and texts with {{name}} in them."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.compose import text_templates
from models.errors import InvalidInput
from models.runtime.environment import CommittedOptions, Environment
from models.users.tables import User
from tests.conftest import Client
from tests.support.accounts.user_operations import run
from tests.support.mail_servers.queue_worker import bodies
from tests.support.operations.bulk_operations import take_back

SENT = """submission { id } submissions { id envelopeFrom recipients { recipient } }
  messages { subject text to { address } } undo { token } warnings { code }"""
pytestmark = pytest.mark.usefixtures("examined")


async def send(client: Client, **given: Any) -> Any:
    return await run(client, "messageSend", SENT, **given)


def codes(done: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in done["errors"]]


def to(whom: str, **values: Any) -> dict[str, Any]:
    return {"to": [{"address": f"{whom}@example.net"}], "values": values}


async def test_each_has_a_message_of_their_own(ada: Client, world: Environment) -> None:
    done = await send(
        ada,
        subject="Hello {{name}}",
        text="Dear {{ name }}, {{count}} {{things}}.",
        html="<p>Dear {{name}}, {{count}} {{things}}.</p>",
        template={"things": "ducks & geese"},
        merge=[to("carol", name="Carol", count=2), to("dave", name="<Dave>", count=3)],
    )
    assert done["errors"] == []
    assert done["submission"] == {"id": done["submissions"][0]["id"]}
    assert [each["recipients"] for each in done["submissions"]] == [
        [{"recipient": "carol@example.net"}],
        [{"recipient": "dave@example.net"}],
    ]
    assert [each["subject"] for each in done["messages"]] == ["Hello Carol", "Hello <Dave>"]
    assert "Dear <Dave>, 3 ducks & geese." in done["messages"][1]["text"]
    first, second = await bodies(world)
    assert b"dave" not in first.lower()
    assert b"carol" not in second.lower()
    assert b"Dear &lt;Dave&gt;, 3 ducks &amp; geese." in second
    ids = [raw.lower().split(b"message-id: ")[1].split(b"\r\n")[0] for raw in (first, second)]
    assert len(set(ids)) == 2


async def test_all_are_sent_or_none(ada: Client, world: Environment) -> None:
    done = await send(ada, subject="x", text="{{a}}", merge=[to("carol", a=1), to("dave")])
    assert codes(done) == [("VALIDATION", ["merge", "1", "text"])]
    bad = [to("carol"), {"to": [{"address": "half@"}]}, {"to": []}]
    done = await send(ada, subject="x", text="y", merge=bad)
    assert codes(done) == [
        ("VALIDATION", ["merge", "1", "to"]),
        ("VALIDATION", ["merge", "2", "to"]),
    ]
    assert await bodies(world) == []


async def test_recipients_are_counted_exactly(ada: Client, world: Environment) -> None:
    async with world.database.write_session() as session:
        this = update(User).where(col(User.id) == ada.user.id)
        await (await session.connection()).execute(this.values(recipients=3))
    four = [to(name) for name in "abcd"]
    assert [code for code, _ in codes(await send(ada, text="x", merge=four))] == ["RATE_LIMITED"]
    assert await bodies(world) == []
    assert (await send(ada, text="x", merge=four[:3]))["errors"] == []


async def test_all_are_taken_back(ada: Client) -> None:
    done = await send(ada, text="x", merge=[to("a"), to("b")], undoWindow="PT30S")
    back = await run_undo(ada, done)
    assert (back["errors"], back["restoredCount"]) == ([], 2)


async def run_undo(client: Client, done: Any) -> Any:
    return await take_back(client, done)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"merge": []}, ["merge"]),
        ({"merge": [to("a")] * 101}, ["merge"]),
        ({"merge": [to("a")], "to": [{"address": "b@example.net"}]}, ["merge"]),
        ({"merge": [to("a")], "isDraft": True}, ["merge"]),
        ({"merge": [to("a")], "envelope": {"to": [{"address": "b@x.org"}]}}, ["merge"]),
        ({"merge": [to("a", x=[1])]}, ["merge", "0", "values", "x"]),
        ({"merge": [to("a", x="a\r\nBcc: b@c.d")], "subject": "{{x}}"}, ["merge", "0", "subject"]),
        ({"to": [{"address": "b@x.org"}], "subject": "{{y}}", "template": {}}, ["subject"]),
        ({"to": [{"address": "b@x.org"}], "template": {"a": {}}}, ["template", "a"]),
        ({"to": [{"address": "b@x.org"}], "template": {"a{": 1}}, ["template"]),
    ],
)
async def test_what_cannot_be_merged_is_refused(
    ada: Client, world: Environment, given: dict[str, Any], path: list[str]
) -> None:
    done = await send(ada, **{"text": "x", **given})
    assert codes(done) == [("VALIDATION", path)]
    assert await bodies(world) == []


async def test_without_values_braces_are_braces(ada: Client) -> None:
    done = await send(ada, to=[{"address": "b@x.org"}], subject="{{x}}", text="{{y}}")
    assert done["messages"][0]["subject"] == "{{x}}"


def test_a_value_is_no_template_and_bounded() -> None:
    assert (
        text_templates.fill_placeholders("{{a}}", {"a": "{{b}}", "b": "c"}, "text", max_length=100)
        == "{{b}}"
    )
    with pytest.raises(InvalidInput):
        text_templates.fill_placeholders("{{a}}" * 11, {"a": "x" * 10}, "text", max_length=100)


async def test_copies_that_have_room_are_kept_and_the_others_told_of(
    ada: Client, world: Environment
) -> None:
    size = (await send(ada, text="x" * 500, to=[{"address": "carol@example.net"}]))["messages"]
    assert len(size) == 1
    (user,) = await world.database.read(select(col(User.used)).where(col(User.id) == ada.user.id))
    world.apply_options(
        CommittedOptions(replace(world.options, default_quota=3 * user.used + 100), 1)
    )
    done = await send(ada, text="x" * 500, merge=[to(name) for name in ("carol", "dave", "erin")])
    assert done["errors"] == []
    assert [each["to"][0]["address"][:4] for each in done["messages"]] == ["caro", "dave"]
    assert len(done["submissions"]) == 3
    assert [warning["code"] for warning in done["warnings"]] == ["NOT_SAVED_TO_SENT"]
    assert len(await bodies(world)) == 4
    world.apply_options(CommittedOptions(world.initial_options, 2))  # as the domain has it counted


async def test_a_merge_takes_as_few_statements_as_one(ada: Client, statements: list[Any]) -> None:
    await send(ada, text="x", merge=[to("warm")])
    counts = []
    for many in (1, 32):
        del statements[:]
        assert not (await send(ada, text="x", merge=[to(f"c{n}") for n in range(many)]))["errors"]
        counts.append(len(statements))
    assert counts[0] == counts[1]
