"""Windows to write in that are asked of a user's clients."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.runtime import leases
from models.runtime.environment import Environment
from models.submission.compose_requests import ComposeListener, ComposeRequest
from models.users.roles import AdminPermission, Scope
from resolvers.submission import compose_requests
from tests.conftest import Client, Clock, make_key, raw_message, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import id_of, run
from tests.support.operations.file_operations import store_file
from tests.support.servers.live_server import House, until
from tests.support.stores.other_processes import taken_for_dead

SHOWN = """id subject text priority requestedBy requestedAt expiresAt
  to { name address } files { filename } identity { address } mailbox { path }
  reference { action message { subject } }"""
ANSWER = f"delivered request {{ {SHOWN} }}"
FOLLOW = f"subscription ($after: ID) {{ composeRequested(after: $after) {{ {SHOWN} }} }}"


async def ask(client: Client, **given: Any) -> Any:
    return await run(client, "composeRequest", ANSWER, **given)


def codes(done: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in done["errors"]]


async def listeners(world: Environment) -> int:
    return len(await world.database.read(select(col(ComposeListener.id))))


async def there(world: Environment, many: int) -> None:
    async def some() -> bool:
        return await listeners(world) == many

    for _ in range(500):
        if await some():
            return
        await asyncio.sleep(0.01)
    assert await listeners(world) == many


@pytest.mark.parametrize("by", ["follow", "stream"])
async def test_every_client_of_the_user_opens_it(
    live: House, ada: Client, bob: Client, world: Environment, by: str
) -> None:
    hear = getattr(live, by)
    one, two, other = [await hear(each, FOLLOW) for each in (ada, ada, bob)]
    await there(world, 3)
    file = await store_file(ada)
    done = await ask(
        ada,
        to=[{"name": "Carol", "address": "carol@example.net"}],
        subject="Plans",
        text="Dear Carol,",
        priority="HIGH",
        mailbox={"path": "Sent"},
        fileAttachments=[{"file": file["id"]}],
    )
    assert (done["errors"], done["delivered"]) == ([], 2)
    await until(lambda: one.got and two.got)
    assert one.results == two.results == [done["request"]]
    assert done["request"]["to"] == [{"name": "Carol", "address": "carol@example.net"}]
    assert done["request"]["files"] == [{"filename": "pond.txt"}]
    assert done["request"]["expiresAt"] == "2030-01-01T00:10:00Z"
    assert other.got == []
    for each in (one, two, other):
        await each.leave()
    await there(world, 0)
    assert codes(await ask(ada, subject="x")) == [("USER_OFFLINE", [])]


async def test_where_nobody_listens_nothing_is_kept(ada: Client, world: Environment) -> None:
    file = await store_file(ada)
    links = [{"file": file["id"], "mode": "LINK"}]
    assert codes(await ask(ada, subject="x", fileAttachments=links)) == [("USER_OFFLINE", [])]
    assert not await world.database.read(select(col(ComposeRequest.id)))
    shares = await ada("{ viewer { user { files { nodes { shares { id } } } } } }")
    assert shares["viewer"]["user"]["files"]["nodes"] == [{"shares": []}]


async def test_a_client_that_comes_back_misses_nothing(
    live: House, ada: Client, world: Environment, clock: Clock
) -> None:
    first, left = await live.follow(ada, FOLLOW), await live.follow(ada, FOLLOW)
    await there(world, 2)
    told = (await ask(ada, subject="one"))["request"]
    await until(lambda: first.got and left.got)
    await left.leave()
    for subject in ("two", "three"):
        assert (await ask(ada, subject=subject))["errors"] == []
    again = await live.follow(ada, FOLLOW, after=told["id"])
    await until(lambda: len(again.got) == 2)
    assert [one["subject"] for one in again.results] == ["two", "three"]
    clock.tick(minutes=11)
    late = await live.follow(ada, FOLLOW, after=told["id"])
    await there(world, 3)  # no clock ends what listens
    assert late.got == []
    await housekeeping.run_round(world)
    assert not await world.database.read(select(col(ComposeRequest.id)))
    for each in (first, again, late):
        await each.leave()


async def test_a_client_whose_server_died_is_not_counted(
    ada: Client, world: Environment, clock: Clock
) -> None:
    holder = await leases.ensure_registered(world)
    async with world.write_session() as session:
        session.add(ComposeListener(id=world.new_id(), user_id=ada.user.id, holder=holder))
    assert (await ask(ada, subject="x"))["delivered"] == 1
    clock.tick(hours=2)
    assert (await ask(ada, subject="x"))["delivered"] == 1
    await taken_for_dead(world)
    assert codes(await ask(ada, subject="x")) == [("USER_OFFLINE", [])]
    await housekeeping.run_round(world)
    assert await listeners(world) == 0


async def test_an_answer_is_asked_for_with_its_quote(ada: Client, world: Environment) -> None:
    holder = await leases.ensure_registered(world)
    async with world.write_session() as session:
        session.add(ComposeListener(id=world.new_id(), user_id=ada.user.id, holder=holder))
    placed = await receive(ada, raw_message("Ponds"))
    key = global_ids.encode("Message", placed.message_id)
    reference = {"message": {"id": key}, "action": "REPLY", "quote": "BELOW"}
    done = await ask(ada, reference=reference, text="Yes.")
    assert done["errors"] == []
    request = done["request"]
    assert request["subject"] == "Re: Ponds"
    assert request["to"] == [{"name": "Carol", "address": "carol@example.com"}]
    assert request["reference"] == {"action": "REPLY", "message": {"subject": "Ponds"}}
    assert request["text"].startswith("Yes.\n\nOn Tue, 01 Jan 2030 10:00:00 +0000, Carol")
    assert "\n> Hi there." in request["text"]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"to": [{"address": "half@"}]}, ["to"]),
        ({"to": [{"address": "c@example.net", "name": "a\r\nBcc: x@y.z"}]}, ["to"]),
        ({"subject": "a\nb"}, ["subject"]),
    ],
)
async def test_what_no_message_could_have_is_refused(
    ada: Client, world: Environment, given: dict[str, Any], path: list[str]
) -> None:
    holder = await leases.ensure_registered(world)
    async with world.write_session() as session:
        session.add(ComposeListener(id=world.new_id(), user_id=ada.user.id, holder=holder))
    assert codes(await ask(ada, **given)) == [("VALIDATION", path)]


async def test_there_are_so_many_at_a_time(ada: Client, world: Environment, clock: Clock) -> None:
    holder = await leases.ensure_registered(world)
    async with world.write_session() as session:
        session.add(ComposeListener(id=world.new_id(), user_id=ada.user.id, holder=holder))
    for _ in range(compose_requests.MAX_OPEN_REQUESTS):
        assert (await ask(ada, subject="x"))["errors"] == []
    assert codes(await ask(ada, subject="x")) == [("LIMIT_REACHED", [])]
    clock.tick(minutes=11)
    assert (await ask(ada, subject="x"))["errors"] == []


async def test_others_are_asked_by_those_who_may_act_as_them(
    ada: Client, bob: Client, over: Client, world: Environment
) -> None:
    holder = await leases.ensure_registered(world)
    async with world.write_session() as session:
        session.add(ComposeListener(id=world.new_id(), user_id=ada.user.id, holder=holder))
    user = {"id": id_of(ada)}
    assert codes(await ask(bob, user=user, subject="x")) == [("NOT_FOUND", ["user"])]
    done = await ask(over, user=user, subject="x")
    assert (done["errors"], done["delivered"]) == ([], 1)
    assert done["request"]["requestedBy"] == "over"
    log = await over("{ adminLog(first: 1) { nodes { mutation } } }")
    assert log["adminLog"]["nodes"] == [{"mutation": "composeRequest"}]
    plain = await make_domain_admin(world, ada.http, "dora")
    assert [code for code, _ in codes(await ask(plain, user=user))] == ["FORBIDDEN"]
    may = await make_domain_admin(world, ada.http, "dirk", [AdminPermission.LOGIN_AS])
    assert (await ask(may, user=user, subject="x"))["delivered"] == 1


async def test_files_and_identities_of_others_are_none(
    ada: Client, bob: Client, world: Environment
) -> None:
    holder = await leases.ensure_registered(world)
    async with world.write_session() as session:
        session.add(ComposeListener(id=world.new_id(), user_id=bob.user.id, holder=holder))
    file = await store_file(ada)
    for mode in ("ATTACH", "LINK", "SHARE_RW"):
        done = await ask(bob, fileAttachments=[{"file": file["id"], "mode": mode}])
        assert codes(done) == [("NOT_FOUND", ["fileAttachments", "0", "file"])]
    identities = await ada("{ viewer { user { identities { nodes { id } } } } }")
    (identity,) = identities["viewer"]["user"]["identities"]["nodes"]
    assert codes(await ask(bob, identity=identity["id"])) == [("NOT_FOUND", ["identity"])]


async def test_it_needs_the_scope_for_sending(ada: Client, world: Environment) -> None:
    scopes = [Scope.MAIL]
    secret = await make_key(world, "reader", user_id=ada.user.id, role=ada.user.role, scopes=scopes)
    reader = Client(ada.http, world, ada.user, secret)
    assert [code for code, _ in codes(await ask(reader, subject="x"))] == ["FORBIDDEN"]
