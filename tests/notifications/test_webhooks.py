"""Webhooks: what is posted, to whom, how it is signed, and who may say so."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from graph.types import global_ids
from mail.maintenance import journal_retention, restore_mark
from models.domains.tables import Domain
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.admin import secret_rotation, tasks
from resolvers.auth import authentication
from resolvers.notifications.webhook_event_types import TYPE_BY_CHANGE_KIND, TYPES, is_known_pattern
from tests.conftest import Client, Clock, make_client, make_user, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.bulk_operations import call, inbox
from tests.support.servers.webhook_receiver import (
    CREATE,
    Got,
    Receiver,
    create,
    inward,
    log_of,
    made,
    pump,
    receiving,
    worker_of,
)
from tests.support.stores.store_snapshot import everything

REPLAY = """mutation ($input: WebhookReplayInput!) { webhookReplay(input: $input) {
  task { id } errors { code message } } }"""
PASSWORD = "correct horse battery"  # noqa: S105 - of an account of this test


@pytest.fixture
async def receiver(world: Environment) -> AsyncIterator[Receiver]:
    inward(world)
    async with receiving() as one:
        yield one


def user(client: Client) -> dict[str, str]:
    return {"username": client.user.username}


async def test_mail_that_comes_is_posted_signed(
    ada: Client, root: Client, receiver: Receiver, clock: Clock
) -> None:
    key, secret = await made(root, receiver.url, "message.received", user=user(ada))
    placed = await receive(ada, "Hello")
    await pump(worker_of(ada.world))
    (got,) = receiver.got
    assert got.path == "/hook?x=1"
    assert got.signed_with(secret)
    assert not got.signed_with("whsec_" + "A" * 44)
    assert int(got.headers["webhook-timestamp"]) == int(clock().timestamp())
    assert got.headers["content-type"] == "application/json"
    body = got.body
    assert body["id"] == got.headers["webhook-id"]
    assert body["type"] == "message.received"
    assert body["user"] == {"id": global_ids.encode("User", ada.user.id), "username": "ada"}
    (message,) = body["objects"]
    assert message["id"] == global_ids.encode("Message", placed.message_id)
    assert message["mailbox"] == global_ids.encode("Mailbox", (await ada.box()).id)
    assert b"Hello" not in got.raw
    (entry,) = (log := await log_of(root, key))["deliveries"]["nodes"]
    assert (entry["state"], entry["attempt"], entry["status"]) == ("DONE", 1, 200)
    assert entry["body"] == body
    assert (log["failures"], log["lastDeliveryAt"]) == (0, "2030-01-01T00:00:00Z")
    await pump(worker_of(ada.world))
    assert len(receiver.got) == 1


async def test_what_was_before_is_not_posted(
    ada: Client, root: Client, receiver: Receiver, clock: Clock
) -> None:
    await receive(ada, "Before")
    clock.tick(seconds=1)
    key, _ = await made(root, receiver.url, "message.*")
    await receive(ada, "Behind")
    await pump(worker_of(ada.world))
    assert receiver.types == ["message.received"]
    update = """mutation ($input: WebhookUpdateInput!) { webhookUpdate(input: $input) {
      webhooks { active } errors { code } } }"""
    for active in (False, True):
        if active:
            await receive(ada, "Meanwhile")
            await pump(worker_of(ada.world))
            clock.tick(seconds=1)
        done = await root(update, input={"ids": [key], "active": active})
        assert done["webhookUpdate"] == {"webhooks": [{"active": active}], "errors": []}
    await receive(ada, "Again")
    await pump(worker_of(ada.world))
    assert receiver.types == ["message.received"] * 2


async def test_a_restore_of_the_database_is_told(
    ada: Client, root: Client, receiver: Receiver, clock: Clock
) -> None:
    await made(root, receiver.url, "message.received")
    worker = worker_of(ada.world)
    await receive(ada, "Before")
    await pump(worker)
    clock.tick(seconds=1)
    await restore_mark.begin_after_consistent_restore(ada.world)
    await receive(ada, "After")
    await pump(worker)
    assert receiver.got[0].body["type"] == "message.received"
    mine = [got.body for got in receiver.got[1:] if who(got) == "ada"]
    assert [body["type"] for body in mine] == ["changes.missed", "message.received"]
    assert (mine[0]["missed"], mine[0]["reason"]) == (None, "STORE_RESTORED")
    assert len({got.body["id"] for got in receiver.got}) == len(receiver.got)


def who(got: Got) -> str | None:
    return (got.body["user"] or {}).get("username")


async def test_what_the_journal_let_go_of_unread_is_told(
    ada: Client, bob: Client, root: Client, receiver: Receiver, clock: Clock
) -> None:
    async with receiving() as bobs, receiving() as late:
        key, _ = await made(root, receiver.url, "message.received")
        await made(root, bobs.url, "message.received", user=user(bob))
        for n in range(3):
            await receive(ada, f"Lost {n}")
        clock.tick(days=31, hours=1)
        await made(root, late.url, "message.received")
        await receive(ada, "Left")
        assert await journal_retention.delete_old_entries(ada.world) > 0
        worker = worker_of(ada.world)
        await pump(worker)
        await pump(worker)  # told once
        mine = [got for got in receiver.got if who(got) == "ada"]
        assert [got.body["type"] for got in mine] == ["changes.missed", "message.received"]
        told = mine[0].body
        assert told["missed"] >= 3  # with what made the account
        assert told["objects"] == []
        assert told["id"].endswith("-missed")
        assert [got.body["type"] for got in late.got] == ["message.received"]
        assert {(who(got), got.body["type"]) for got in bobs.got} == {
            (None, "changes.missed"),  # of the domain, and of the platform
            ("bob", "changes.missed"),
        }
        log = (await log_of(root, key))["deliveries"]["nodes"]
        assert told in [node["body"] for node in log if node["type"] == "changes.missed"]
        answer = await root(REPLAY, input={"webhook": key, "after": told["cursor"]})
        assert answer["webhookReplay"]["errors"] == []


async def test_each_hears_only_what_it_is_for(
    ada: Client, bob: Client, root: Client, receiver: Receiver, clock: Clock
) -> None:
    world = ada.world
    clock.tick(seconds=1)
    async with receiving() as adas, receiving() as ours:
        await made(root, receiver.url)
        await made(root, adas.url, user=user(ada))
        await made(root, ours.url, "message.*", domain={"name": "example.org"})
        await receive(ada, "One")
        await receive(bob, "Two")
        await pump(worker_of(world))
        names = [got.body["user"]["username"] for got in receiver.got]
        assert sorted(names) == ["ada", "bob"]
        assert [got.body["user"]["username"] for got in adas.got] == ["ada"]
        assert sorted(got.body["user"]["username"] for got in ours.got) == ["ada", "bob"]
        domain = {got.body["domain"] for got in ours.got}
        assert len(domain) == 1
        assert str(*domain).startswith("dom_")


async def test_users_and_addresses_that_come_and_go_are_told_of(
    root: Client, world: Environment, receiver: Receiver, clock: Clock
) -> None:
    await make_user(world, "first")  # so that the domain is there
    clock.tick(seconds=1)
    await made(root, receiver.url, "user.*", "address.*", "domain.*")
    zoe = await make_user(world, "zoe")
    await pump(worker_of(world))
    key = global_ids.encode("User", zoe.id)
    told = [(got.body["type"], got.body["objects"][0]["id"]) for got in receiver.got]
    assert ("user.created", key) in told
    assert [name for name, _ in told if name.startswith("address.")] == ["address.created"]
    del receiver.got[:]
    change = """mutation ($id: ID!) { userUpdate(input: {users: {ids: [$id]},
      set: {name: "Zoe"}}) { errors { message } } }"""
    assert (await root(change, id=key))["userUpdate"]["errors"] == []
    await pump(worker_of(world))
    (got,) = receiver.got  # one, though the journals of account and domain both tell it
    assert (got.body["type"], got.body["objects"]) == (
        "user.updated", [{"id": key, "changed": ["name"]}],
    )  # fmt: skip
    del receiver.got[:]
    delete = "mutation ($id: ID!) { userDelete(input: {users: {ids: [$id]}}) { errors { code } } }"
    assert (await root(delete, id=key))["userDelete"]["errors"] == []
    await pump(worker_of(world))
    assert {"user.deleted", "address.deleted"} <= set(receiver.types)


async def test_a_login_that_fails_is_told_of(
    world: Environment, root: Client, ada: Client, receiver: Receiver
) -> None:
    eve = await make_user(world, "eve", password=PASSWORD)
    await made(root, receiver.url, "login.failed", user={"username": "eve"})
    attempt = """mutation ($p: String!) { authenticate(input: {username: "eve", password: $p,
      scope: IMAP}) { errors { code } } }"""
    for password in ("wrong", PASSWORD):
        await ada(attempt, p=password)
    await authentication.wait_for_background_tasks(world)  # it is noted behind the answer
    await pump(worker_of(world))
    (got,) = receiver.got
    (event,) = got.body["objects"]
    assert (event["action"], event["result"]) == ("authenticate", "fail")
    assert got.body["user"]["username"] == eve.username
    assert b"wrong" not in got.raw


async def test_a_bulk_change_is_one_post(ada: Client, root: Client, receiver: Receiver) -> None:
    for n in range(3):
        await receive(ada, f"No. {n}")
    await made(root, receiver.url, "message.updated")
    await call(ada, "messageUpdate", select=inbox("1:3"), set={"seen": True})
    await pump(worker_of(ada.world))
    (got,) = receiver.got
    assert [len(got.body["objects"]), got.body["objects"][0]["flags"]] == [3, ["\\Seen"]]


async def test_two_secrets_are_good_while_they_change(
    ada: Client, root: Client, receiver: Receiver, clock: Clock, world: Environment
) -> None:
    key, old = await made(root, receiver.url, "message.*")
    rotate = """mutation ($id: ID!, $overlap: Duration!) { webhookSecretRotate(
      input: {id: $id, overlap: $overlap}) { secret errors { code } } }"""
    new = (await root(rotate, id=key, overlap="PT1H"))["webhookSecretRotate"]["secret"]
    assert new != old
    await receive(ada, "Now")
    await pump(worker_of(world))
    clock.tick(hours=2)
    await receive(ada, "Later")
    await pump(worker_of(world))
    both, one = receiver.got
    assert [both.signed_with(old), both.signed_with(new)] == [True, True]
    assert [one.signed_with(old), one.signed_with(new)] == [False, True]


async def test_secrets_lie_sealed_and_are_sealed_anew(
    root: Client, world: Environment, receiver: Receiver, ada: Client
) -> None:
    _, secret = await made(root, receiver.url, "message.*")
    rows = await everything(world)
    assert secret not in str(rows)
    assert secret[6:] not in str(rows)
    other = SecretBox({**world.secret_box.keys, "newer": b"n" * 32})
    object.__setattr__(world, "secret_box", other)
    resealed = await secret_rotation.reencrypt_all(world)
    assert (resealed.reencrypted_count, resealed.failed_contexts) == (1, [])
    object.__setattr__(world, "secret_box", SecretBox({"newer": b"n" * 32}))
    await receive(ada, "Hello")
    await pump(worker_of(world))
    assert receiver.got[0].signed_with(secret)


async def test_a_test_call_is_posted_even_where_it_is_off(
    root: Client, world: Environment, receiver: Receiver, ada: Client
) -> None:
    key, secret = await made(root, receiver.url, "user.*", active=False)
    await receive(ada, "Hello")
    again = """mutation ($id: ID!) { webhookTest(input: {ids: [$id]}) {
      webhooks { id } errors { code } } }"""
    done = (await root(again, id=key))["webhookTest"]
    assert done == {"webhooks": [{"id": key}], "errors": []}
    await pump(worker_of(world))
    assert receiver.types == ["ping"]
    assert receiver.got[0].signed_with(secret)
    receiver.answer = b"HTTP/1.1 500 No\r\n\r\n"
    await root(again, id=key)
    await pump(worker_of(world))
    newest = (await log_of(root, key))["deliveries"]["nodes"][0]
    assert (newest["state"], newest["error"]) == ("DEAD", "status 500")


async def test_events_are_replayed_from_a_position(
    ada: Client, root: Client, world: Environment, receiver: Receiver
) -> None:
    key, _ = await made(root, receiver.url, "message.*", user=user(ada))
    for subject in ("One", "Two", "Three"):
        await receive(ada, subject)
    await pump(worker_of(world))
    first = receiver.got[0].body
    again = """mutation ($id: ID!, $after: Cursor!) { webhookReplay(
      input: {webhook: $id, after: $after}) { task { kind total }
      errors { message path ... on ValidationError { constraint } } } }"""
    done = (await root(again, id=key, after=first["cursor"]))["webhookReplay"]
    assert done == {"task": {"kind": "WEBHOOK_REPLAY", "total": 2}, "errors": []}
    while await tasks.run_next_task(world):
        pass
    await pump(worker_of(world))
    names = [got.body["id"] for got in receiver.got]
    assert names[3:] == names[1:3]  # the same events, known by their ids
    for wrong, constraint in (("1.77.1", "cursor"), (f"1.{ada.user.id}.999999", "cursor")):
        refused = (await root(again, id=key, after=wrong))["webhookReplay"]
        assert [e["constraint"] for e in refused["errors"]] == [constraint]


@pytest.mark.parametrize(
    ("given", "path", "constraint"),
    [
        ({"types": []}, ["types"], "length"),
        ({"types": ["user.*", "nonsense.*"]}, ["types", "1"], "unknown"),
        ({"types": ["ping"]}, ["types", "0"], "unknown"),
        ({"types": ["user"]}, ["types", "0"], "unknown"),
        ({"url": "ftp://example.com/"}, ["url"], "url"),
        ({"url": "smtp://example.com/"}, ["url"], "url"),
        ({"url": "https://"}, ["url"], "url"),
        ({"url": "https://example.com:99999/"}, ["url"], "url"),
        ({"url": "https://u:p@example.com/"}, ["url"], "url"),
        ({"url": "https://example.com/#x"}, ["url"], "url"),
        ({"url": "https://example.com/" + "x" * 2048}, ["url"], "url"),
        ({"url": "http://localhost:1/"}, ["url"], "private"),
        ({"url": "http://127.0.0.1/"}, ["url"], "private"),
        ({"url": "http://0.0.0.0/"}, ["url"], "private"),
        ({"url": "http://10.1.2.3/"}, ["url"], "private"),
        ({"url": "http://169.254.169.254/latest"}, ["url"], "private"),
        ({"url": "http://[::1]/"}, ["url"], "private"),
        ({"url": "http://[::ffff:10.0.0.1]/"}, ["url"], "private"),
        ({"url": "http://[fe80::1]/"}, ["url"], "private"),
        ({"url": "http://[64:ff9b::7f00:1]/"}, ["url"], "private"),
        ({"url": "http://[2002:7f00:1::]/"}, ["url"], "private"),
        ({"url": "http://db.internal/"}, ["url"], "private"),
    ],
)
async def test_what_no_webhook_can_be_is_refused(
    root: Client, given: dict[str, Any], path: list[str], constraint: str
) -> None:
    whole = {"url": "https://example.com/", "types": ["*"], **given}
    payload = (await root(CREATE, input=whole))["webhookCreate"]
    errors = [(e["path"], e["constraint"]) for e in payload["errors"]]
    assert [(found[:1], rule) for found, rule in errors] == [(path[:1], constraint)]
    listed = await root("{ webhooks { totalCount } }")
    assert listed["webhooks"]["totalCount"] == 0


async def test_webhooks_are_listed_by_type_and_user(
    root: Client, ada: Client, world: Environment
) -> None:
    inward(world)
    await made(root, "https://a.example/", "user.created", "message.*")
    await made(root, "https://b.example/", "user.*", user=user(ada))
    await made(root, "https://c.example/", "*")
    listing = "query ($t: String, $u: UserRef) { webhooks(type: $t, user: $u) { nodes { url } } }"

    async def urls(**asked: Any) -> list[str]:
        text = listing
        if "t" not in asked:
            text = text.replace("$t: String, ", "").replace("type: $t, ", "")
        found = (await root(text, **asked))["webhooks"]["nodes"]
        return [str(one["url"])[8:9] for one in found]

    assert await urls() == ["a", "b", "c"]
    assert await urls(t="user.*") == ["a", "b"]
    assert await urls(t="user.created") == ["a"]
    assert await urls(t="message.*") == ["a"]
    assert await urls(t="*", u=user(ada)) == ["b"]
    answer = await root.raw('{ webhooks(type: "x.y") { nodes { id } } }')
    assert "no such type" in answer["errors"][0]["message"]


async def test_a_domain_admin_has_webhooks_of_the_domain_alone(
    world: Environment, root: Client, ada: Client
) -> None:
    everything = [AdminPermission.LOGIN_AS]
    dora = await make_domain_admin(world, ada.http, "dora", everything)
    async with world.write_session(0) as session:
        session.add(Domain(id=world.new_id(), name="other.example", created_at=world.now(),
                           updated_at=world.now()))  # fmt: skip
    url = "https://hooks.example.com/"
    platform, _ = await made(root, url)
    ours = await create(dora, url, "message.*")
    assert ours["webhook"]["domain"] == {"name": "example.org"}
    theirs = await create(dora, url, user=user(ada))
    shown = theirs["webhook"]
    assert (shown["user"], shown["domain"]) == ({"username": "ada"}, {"name": "example.org"})
    refused = await create(dora, url, domain={"name": "other.example"})
    assert [e["code"] for e in refused["errors"]] == ["NOT_FOUND"]
    boss = await make_client(world, ada.http, "boss", role=Role.ADMIN)
    refused = await create(dora, url, user=user(boss))
    assert [e["code"] for e in refused["errors"]] == ["NOT_FOUND"]
    seen = (await dora("{ webhooks { nodes { id } } }"))["webhooks"]["nodes"]
    assert [one["id"] for one in seen] == [ours["webhook"]["id"], theirs["webhook"]["id"]]
    for name in ("Delete", "Test", "Update"):
        more = "active: false" if name == "Update" else ""
        text = "mutation ($id: ID!) { done: webhook%s(input: {ids: [$id] %s}) { errors { code } } }"
        done = (await dora(text % (name, more), id=platform))["done"]
        assert done["errors"] == [{"code": "NOT_FOUND"}]
    assert (await log_of(dora, platform)) is None
    assert (await log_of(ada, ours["webhook"]["id"])) is None  # a USER sees none at all


async def test_a_user_who_leaves_the_domain_leaves_its_webhooks(
    world: Environment, ada: Client, receiver: Receiver
) -> None:
    dora = await make_domain_admin(world, ada.http, "dora")
    await made(dora, receiver.url, "message.*", user=user(ada))
    await receive(ada, "Here")
    await pump(worker_of(world))
    async with world.write_session(ada.user.id) as session:
        (await session.get_one(User, ada.user.id)).domain_id = None
    await receive(ada, "Elsewhere")
    await pump(worker_of(world))
    assert len(receiver.got) == 1


async def test_nothing_of_a_webhook_is_set_to_null(root: Client) -> None:
    key, _ = await made(root, "https://hooks.example.com/", "user.*")
    text = """mutation ($input: WebhookUpdateInput!) { webhookUpdate(input: $input) {
      errors { code } } }"""
    for name in ("types", "url", "active"):
        answer = await root.raw(text, input={"ids": [key], name: None})
        assert [e["extensions"]["code"] for e in answer["errors"]] == ["BAD_USER_INPUT"]


def test_every_kind_of_change_has_its_type() -> None:
    rest = {ChangeKind.SECURITY_EVENT, ChangeKind.RESYNC}
    assert set(TYPE_BY_CHANGE_KIND) == set(ChangeKind) - rest
    assert all(
        is_known_pattern(name) and is_known_pattern(name.split(".")[0] + ".*") for name in TYPES
    )
    assert not is_known_pattern("message.receive")
