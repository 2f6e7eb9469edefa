"""Mail that is held: what comes to be held, who sees it, and what is in it."""

import math
from datetime import UTC, datetime

import httpx
import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from graph.types import global_ids
from mail.consistency import check_consistency
from mail.delivery import pipeline, quarantine
from mail.delivery.quarantine import QuarantineReason
from mail.maintenance import housekeeping
from mail.recipients.address_resolution import load_recipient
from mail.spam.scan_result import SpamScanSymbol
from models.errors import LimitReached, NotFound
from models.runtime.environment import Environment
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.columns import core_table
from models.users.roles import AdminPermission, Scope
from models.users.tables import User
from resolvers.admin import tasks
from tests.conftest import Client, Clock, make_key, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.openpgp_keys import opened, pair_of, public_of
from tests.support.accounts.user_operations import change
from tests.support.operations.domain_operations import done, told
from tests.support.operations.quarantine_operations import (
    CAROL,
    DELETE,
    KIND,
    LIST,
    LOOK,
    NODE,
    OFTEN,
    RELEASE,
    SPAM,
    TRY,
    WHY,
    come,
    held,
    hold,
    inbox,
    listed,
    mixed,
    permit,
    set_options,
    stamps,
)
from tests.support.sample_mutations import CALLS, Call
from tests.support.stores.counter_check import journal, reached, rows

pytestmark = pytest.mark.usefixtures("examined")


# what comes to be held


async def test_spam_of_a_high_score_is_held_where_that_is_set(ada: Client, bob: Client) -> None:
    world = ada.world
    raw = raw_message("Offer", **SPAM)
    await come(world, ada, raw=raw)
    assert await held(world) == []
    set_options(world, spam_quarantine=75)
    await come(world, ada, raw=raw_message("Little", X_Spam_Flag="YES"))
    since = await reached(world, ada.user.id)
    assert await come(world, ada, bob, raw=raw_message("Much", **SPAM)) == [None, None]
    mine, his = await held(world)
    assert (mine.user_id, his.user_id) == (ada.user.id, bob.user.id)
    assert await journal(world, ada.user.id, since) == [(KIND, [mine.id])]
    (item,) = (await ada(LIST))["quarantine"]["nodes"]
    assert item == {
        "id": global_ids.encode("QuarantineItem", mine.id),
        "queueId": mine.queue_id,
        "user": {"username": "ada"},
        "domain": {"name": "example.org"},
        "sender": CAROL,
        "recipient": "ada@example.org",
        "subject": "Much",
        "score": 75.0,
        "symbols": [],
        "virus": False,
        "virusName": None,
        "createdAt": "2030-01-01T00:00:00Z",
        "notified": False,
        "expiresAt": "2030-01-31T00:00:00Z",
    }
    counts = await rows(world, "SELECT message_count FROM users ORDER BY username")
    assert counts == [(2,), (0,)]  # what is in Junk


async def test_what_is_no_spam_for_somebody_is_not_held(ada: Client, bob: Client) -> None:
    world = ada.world
    set_options(world, spam_quarantine=50)
    async with world.write_session() as session:
        this = update(User).where(col(User.id) == bob.user.id)
        await session.exec(this.values(spam_level=100))
    rule = {"scope": {"user": {"username": "ada"}}, "action": "ALLOW", "patterns": [CAROL]}
    assert (await Call("senderRuleCreate", rule)(ada))["errors"] == []
    await come(world, ada, bob, raw=raw_message("Friend", **SPAM))
    assert await held(world) == []
    assert (await inbox(ada), await inbox(bob)) == (["Friend"], ["Friend"])
    await come(world, ada, raw=raw_message("Stranger", **SPAM), sender="x@else.example")
    assert await inbox(ada) == ["Stranger", "Friend"]  # From counts too, and is carol's
    assert await held(world) == []


async def test_what_is_too_large_to_be_held_goes_to_junk(ada: Client) -> None:
    world = ada.world
    set_options(world, spam_quarantine=50, quarantine_max=1000)
    raw = raw_message("Large", body="x" * 2000, **SPAM)
    (placed,) = await come(world, ada, raw=raw)
    assert placed is not None
    assert await held(world) == []
    with pytest.raises(LimitReached):
        await hold(ada, raw)


async def test_a_repeat_after_a_lost_reply_is_held_once(ada: Client, clock: Clock) -> None:
    world = ada.world
    set_options(world, spam_quarantine=50)
    raw = raw_message("Offer", **SPAM)
    for _ in range(2):
        await come(world, ada, raw=raw)
        clock.tick(hours=3)
    (first,) = await held(world)
    _, errors = await done(ada, DELETE, ids=[global_ids.encode("QuarantineItem", first.id)])
    assert errors == []
    await come(world, ada, raw=raw)
    assert await held(world) == []  # it was there, and its owner did not want it
    clock.tick(days=1)
    await come(world, ada, raw=raw)
    assert len(await held(world)) == 1


async def test_the_oldest_go_where_there_are_too_many_or_too_much(
    ada: Client, clock: Clock
) -> None:
    world = ada.world
    set_options(world, quarantine_items=3)
    for letter in "abcd":
        await hold(ada, letter)
        clock.tick(seconds=1)
    assert await listed(ada) == ["d", "c", "b"]
    first = (await held(world))[0]
    set_options(world, quarantine_bytes=first.size * 2)
    since = await reached(world, ada.user.id)
    await hold(ada, "e")
    assert await listed(ada) == ["e", "d"]
    kinds = await journal(world, ada.user.id, since)
    assert [kind for kind, _ in kinds] == [KIND, KIND]
    assert first.id in kinds[1][1]
    await hold(ada, raw_message("whale", body="x" * 5000))
    assert await listed(ada) == ["whale"]


async def test_what_is_held_counts_among_what_comes_in_an_hour(ada: Client, clock: Clock) -> None:
    world = ada.world
    set_options(world, received_hourly=2)
    await hold(ada, "a")
    await hold(ada, "b")
    with pytest.raises(Exception, match="too much mail"):
        await load_recipient(world, ada.address)
    clock.tick(hours=1)
    assert (await load_recipient(world, ada.address)).user_id == ada.user.id


async def test_odd_words_are_kept_within_bounds(ada: Client) -> None:
    many = [SpamScanSymbol("S\0" * 200, 1.0, "d\ud800" * 900)] * 300
    await hold(
        ada, raw_message("=?utf-8?q?Nul=00l?="), QuarantineReason(1e3, many, "Eicar\0" + "x" * 500)
    )
    (row,) = await held(ada.world)
    assert (len(row.symbols), len(row.virus) <= 128) == (200, True)
    assert all(len(each["name"]) <= 128 for each in row.symbols)
    assert all(len(each["description"]) <= 512 for each in row.symbols)
    (item,) = (await ada(LIST))["quarantine"]["nodes"]
    assert (item["virus"], item["score"]) == (True, 1000.0)
    for wild in (math.nan, math.inf, -math.inf):
        await hold(ada, f"{wild}", QuarantineReason(wild, [SpamScanSymbol("WILD", wild)]))
    nodes = (await ada(LIST))["quarantine"]["nodes"]
    assert {node["subject"]: node["score"] for node in nodes[:3]} == {
        "nan": 0.0, "inf": 1e9, "-inf": -1e9,
    }  # fmt: skip
    assert all(node["symbols"][0]["score"] == node["score"] for node in nodes[:3])


async def test_who_has_gone_meanwhile_is_not_found(ada: Client, over: Client) -> None:
    mail = await pipeline.read_incoming(ada.world, raw_message("Late"), CAROL)
    to = await load_recipient(ada.world, ada.address)
    given = {"users": {"usernames": ["ada"]}}
    assert (await Call("userDelete", given)(over))["errors"] == []
    with pytest.raises(NotFound):
        await quarantine.quarantine_message(ada.world, mail, to, WHY)
    assert await held(ada.world) == []


# who sees it


async def test_another_user_sees_and_changes_nothing(
    ada: Client, bob: Client, http: httpx.AsyncClient
) -> None:
    key = await hold(ada)
    url = (await ada(LOOK, id=key))["node"]["sourceUrl"]
    assert await listed(bob) == []
    assert await listed(bob, users={"usernames": ["bob"]}) == []
    answer = await bob.raw(LIST, filter={"users": {"usernames": ["ada"]}})
    assert answer["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    for document in (NODE, LOOK):
        assert await bob(document, id=key) == {"node": None}
    for document in (RELEASE, DELETE):
        _, errors = await done(bob, document, ids=[key])
        assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 0)
    path = url.partition("?")[0]
    assert (await http.get(path, headers=bob.headers)).status_code == 404
    assert (await http.get(path)).status_code == 401
    assert (await http.get(path, headers=ada.headers)).status_code == 200
    assert await listed(ada) == ["Offer"]


async def test_a_user_without_the_permission_sees_nothing(
    ada: Client, root: Client, http: httpx.AsyncClient
) -> None:
    key = await hold(ada, mixed())
    await permit(root, "QUARANTINE_ATTACHMENTS", "QUARANTINE_NOTIFICATION")
    for document in (LIST, "{ viewer { user { quarantine { totalCount } } } }"):
        answer = await ada.raw(document)
        assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert await ada(NODE, id=key) == {"node": None}
    path = f"/rest/quarantine/{key}/message.eml"
    assert (await http.get(path, headers=ada.headers)).status_code == 404
    await permit(root, "QUARANTINE")
    assert await listed(ada) == ["Mixed"]
    answer = await ada.raw(LOOK, id=key)
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert (await http.get(path, headers=ada.headers)).status_code == 403
    _, errors = await done(ada, OFTEN, frequency="NEVER")
    assert told(errors)[::3] == ("FORBIDDEN", "QUARANTINE_NOTIFICATION")


async def test_a_credential_for_mail_does_not_reach_it(
    ada: Client, http: httpx.AsyncClient
) -> None:
    key = await hold(ada)
    for scope, sees in ((Scope.MAIL, False), (Scope.MAIL_READ, False), (Scope.READ, True)):
        secret = await make_key(
            ada.world, f"few{scope}", user_id=ada.user.id, role=ada.user.role, scopes=[scope]
        )
        few = Client(http, ada.world, ada.user, secret)
        answer = await few.raw("query ($id: ID!) { node(id: $id) { id } }", id=key)
        assert bool(answer["data"]["node"]) is sees
        status = await http.get(f"/rest/quarantine/{key}/message.eml", headers=few.headers)
        assert (status.status_code == 200) is sees


async def test_administrators_see_what_is_held_where_they_are_in_charge(
    ada: Client, root: Client, over: Client, http: httpx.AsyncClient, world: Environment
) -> None:
    chief = await make_domain_admin(world, http, "chief", [AdminPermission.QUARANTINE])
    bare = await make_domain_admin(world, http, "bare")
    key = await hold(ada, mixed())
    await hold(bare, "Own")
    assert await listed(chief) == ["Mixed"]  # not that of other administrators of the domain
    assert await listed(chief, users={"usernames": ["bare"]}) == []
    assert await listed(chief, users={"usernames": ["ada"]}) == ["Mixed"]
    assert (await listed(over), await listed(root)) == (["Own", "Mixed"], ["Own", "Mixed"])
    assert await listed(over, users={"domains": ["example.org"]}) == ["Own", "Mixed"]
    assert await listed(bare) == ["Own"]
    assert await bare(NODE, id=key) == {"node": None}
    for document in (RELEASE, DELETE):
        _, errors = await done(bare, document, ids=[key])
        assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 0)
    _, errors = await done(bare, OFTEN, users={"usernames": ["ada"]}, frequency="NEVER")
    assert told(errors)[::3] == ("FORBIDDEN", "QUARANTINE")
    few = await make_key(
        world, "few", user_id=chief.user.id, role=chief.user.role, scopes=[Scope.SETTINGS]
    )
    for document in (TRY, DELETE):
        _, errors = await done(Client(http, world, chief.user, few), document, ids=[key])
        assert told(errors)[::3] == ("FORBIDDEN", "MASTER")
    assert await listed(ada) == ["Mixed"]


async def test_who_looks_into_anothers_is_in_that_ones_security_log(
    ada: Client, root: Client, http: httpx.AsyncClient, world: Environment
) -> None:
    chief = await make_domain_admin(world, http, "chief", [AdminPermission.QUARANTINE])
    key = await hold(ada, mixed())
    await listed(chief)
    log = "{ viewer { user { authLog { nodes { action } } } } }"

    async def seen() -> list[str]:
        nodes = (await ada(log))["viewer"]["user"]["authLog"]["nodes"]
        return [node["action"] for node in nodes if node["action"] == "read mail"]

    assert await seen() == []
    found = (await chief(LOOK, id=key))["node"]
    assert found["text"] == "Look at this."
    assert len(await seen()) == 1
    for client in (chief, root):
        url = (await client("query ($id: ID!) { node(id: $id) { ... on QuarantineItem { sourceUrl"
                            " } } }", id=key))["node"]["sourceUrl"]  # fmt: skip
        assert (await http.get(url)).status_code == 200
    count = "{ viewer { user { authLog { nodes { action count } } } } }"
    nodes = (await ada(count))["viewer"]["user"]["authLog"]["nodes"]
    assert sum(node["count"] for node in nodes if node["action"] == "read mail") == 3


# what is in it


async def test_its_text_and_files_are_to_be_looked_at_and_fetched(
    ada: Client, http: httpx.AsyncClient
) -> None:
    raw = mixed()
    key = await hold(ada, raw)
    found = (await ada(LOOK, id=key))["node"]
    assert found["text"] == "Look at this."
    picture, letter = found["attachments"]
    assert (picture["filename"], picture["contentType"]) == ("a.png", "image/png")
    whole = await http.get(found["sourceUrl"])
    assert whole.content == raw
    assert whole.headers["Cache-Control"] == "no-store"
    file = await http.get(picture["url"])
    assert file.content == bytes(range(256)) * 20
    assert file.headers["Content-Disposition"].startswith("attachment")  # never shown in a page
    assert letter["message"]["subject"] == "Inner"
    (inner,) = letter["message"]["attachments"]
    assert (await http.get(inner["url"])).content == b"abc\r\n"
    for url in (picture["url"], found["sourceUrl"]):
        assert (await http.get(url.replace("sig=", "sig=x"))).status_code == 401
    assert (await http.get(picture["url"].partition("?")[0])).status_code == 401
    _, errors = await done(ada, DELETE, ids=[key])
    assert errors == []
    for url in (picture["url"], found["sourceUrl"], inner["url"]):
        assert (await http.get(url)).status_code == 404


async def test_a_text_is_safe_and_has_an_end(ada: Client) -> None:
    page = "<html><script>alert(1)</script><p>Buy</p></html>"
    key = await hold(ada, raw_message("Page", body=page, Content_Type="text/html"))
    assert (await ada(LOOK, id=key))["node"]["text"].strip() == "Buy"
    key = await hold(
        ada, raw_message("Long", body="wörd " * 40_000, Content_Type="text/plain; charset=utf-8")
    )
    assert len((await ada(LOOK, id=key))["node"]["text"]) == 65_536


async def test_what_is_held_keeps_its_bytes(ada: Client, clock: Clock, world: Environment) -> None:
    key = await hold(ada, mixed())
    clock.tick(days=29)
    await housekeeping.run_round(world)
    assert (await ada(LOOK, id=key))["node"]["text"] == "Look at this."
    clock.tick(days=1)
    since = await reached(world, ada.user.id)
    assert (await housekeeping.run_round(world)).held == 1
    assert await listed(ada) == []
    ((kind, keys), *_) = await journal(world, ada.user.id, since)
    assert (kind, keys) == (KIND, [global_ids.decode("QuarantineItem", key)])
    clock.tick(days=2)
    await housekeeping.run_round(world)
    assert await rows(world, "SELECT id FROM blobs") == [
        (row[0],) for row in await rows(world, "SELECT DISTINCT blob_id FROM message_blobs")
    ]


async def test_the_verifier_looks_at_what_is_held(ada: Client, bob: Client) -> None:
    """And finds nothing wrong until there is."""
    world = ada.world
    for client in (ada, bob):
        await hold(client, mixed())
    assert (await check_consistency(world)).findings == []
    first, second = await held(world)
    async with world.write_session() as session:
        connection = await session.connection()
        table = core_table(QuarantineBlob)
        whole = table.c.blob_id == first.blob_id
        await connection.execute(delete(table).where(whole, table.c.item_id == first.id))
        await connection.execute(delete(table).where(~whole, table.c.item_id == second.id))
        items = core_table(QuarantineItem)
        wrong = update(items).where(items.c.id == second.id)
        await connection.execute(wrong.values(size=items.c.size + 1))
    found = {(one.rule, one.object) for one in (await check_consistency(world)).findings}
    assert found == {
        ("root_reference", f"quarantine_items/{first.id}"),
        ("piece_references", f"quarantine_items/{second.id}"),
        ("message_size", f"quarantine_items/{second.id}"),
    }
    for row in (first, second):
        await done(ada if row.user_id == ada.user.id else bob, DELETE,
                   ids=[global_ids.encode("QuarantineItem", row.id)])  # fmt: skip


async def test_audits_have_what_is_held(ada: Client, root: Client) -> None:
    made = await (await CALLS["auditCreate"](ada, root))(root)
    assert made["errors"] == []
    while await tasks.run_next_task(ada.world):
        pass
    key = await hold(ada, mixed())
    _, errors = await done(ada, DELETE, ids=[key])
    assert errors == []
    copies = "{ audits { nodes { messages { nodes { subject road mailboxPath } } } } }"
    ((audit),) = (await root(copies))["audits"]["nodes"]
    assert audit["messages"]["nodes"][-1] == {
        "subject": "Mixed", "road": "RECEIVED", "mailboxPath": None,
    }  # fmt: skip


async def test_it_is_encrypted_where_what_arrives_is(
    ada: Client, clock: Clock, http: httpx.AsyncClient
) -> None:
    seconds = int((clock() - datetime.now(UTC)).total_seconds()) + 30 * 86_400
    pair = pair_of("Ada <ada@example.org>", seconds=seconds)
    assert (await change(ada, pubKey=public_of(pair), encryptMessages=True))[1] == []
    key = await hold(ada, raw_message("Sealed", body="herons at dawn"))
    url = (await ada(LOOK, id=key))["node"]["sourceUrl"]
    sealed = (await http.get(url)).content
    assert b"herons" not in sealed
    assert b"herons at dawn" in opened(sealed, pair)
    assert "herons" not in ((await ada(LOOK, id=key))["node"]["text"] or "")
    for table in ("blobs", "quarantine_items"):
        assert "herons" not in str(await rows(ada.world, f"SELECT * FROM {table}"))  # noqa: S608
    _, errors = await done(ada, RELEASE, ids=[key])
    assert errors == []
    source = "{ viewer { user { messages(first: 1) { nodes { sourceUrl } } } } }"
    (node,) = (await ada(source))["viewer"]["user"]["messages"]["nodes"]
    assert (await http.get(node["sourceUrl"])).content == stamps(ada) + sealed
    assert (await change(ada, encryptMessages=False))[1] == []
    key = await hold(ada, raw_message("Open", body="herons at noon"))
    assert (await change(ada, encryptMessages=True))[1] == []
    _, errors = await done(ada, RELEASE, ids=[key])
    (node,) = (await ada(source))["viewer"]["user"]["messages"]["nodes"]
    assert b"herons at noon" in opened((await http.get(node["sourceUrl"])).content, pair)
