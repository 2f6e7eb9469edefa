"""Quarantined messages: which are quarantined, what they contain, and how long they are kept."""

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
from mail.recipients.address_resolution import load_recipient_below_limits
from mail.spam.scan_result import SpamScanSymbol
from models.errors import LimitReached, NotFound
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.columns import core_table
from models.users.tables import User
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.openpgp_keys import armored_public_key, decrypt_message, make_secret_key
from tests.support.accounts.user_operations import try_update_users
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.quarantine_operations import (
    CAROL_ADDRESS,
    QUARANTINE_CONTENTS_QUERY,
    QUARANTINE_DELETE,
    QUARANTINE_QUERY,
    QUARANTINE_REASON,
    QUARANTINE_RELEASE,
    SPAM_HEADERS,
    deliver_message_to,
    delivery_header_fields,
    list_inbox_subjects,
    list_quarantined_subjects,
    load_quarantine_rows,
    make_mixed_message,
    quarantine_message,
    set_options,
)
from tests.support.sample_mutations import SAMPLE_CALLS, MutationCall
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_spam_above_threshold_is_quarantined_if_enabled(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    environment = ada.environment
    raw = raw_message("Offer", **SPAM_HEADERS)
    await deliver_message_to(environment, ada, raw=raw)
    assert await load_quarantine_rows(environment) == []
    set_options(environment, spam_quarantine_score=75)
    await deliver_message_to(environment, ada, raw=raw_message("Little", X_Spam_Flag="YES"))
    position = await load_stream_position(environment, ada.user.id)
    assert await deliver_message_to(
        environment, ada, bob, raw=raw_message("Much", **SPAM_HEADERS)
    ) == [None, None]
    ada_item, bob_item = await load_quarantine_rows(environment)
    assert (ada_item.user_id, bob_item.user_id) == (ada.user.id, bob.user.id)
    assert await load_journal_entries(environment, ada.user.id, position) == [
        (EventType.QUARANTINE_HELD, [ada_item.id])
    ]
    (item,) = (await ada(QUARANTINE_QUERY))["quarantine"]["nodes"]
    assert item == {
        "id": global_ids.encode("QuarantineItem", ada_item.id),
        "queueId": ada_item.queue_id,
        "user": {"username": "ada"},
        "domain": {"name": "example.org"},
        "sender": CAROL_ADDRESS,
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
    counts = await select_rows(environment, "SELECT message_count FROM users ORDER BY username")
    assert counts == [(2,), (0,)]  # the message in Junk


async def test_message_allowed_by_user_settings_is_not_quarantined(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    environment = ada.environment
    set_options(environment, spam_quarantine_score=50)
    async with environment.write_session() as session:
        user_update = update(User).where(col(User.id) == bob.user.id)
        await session.exec(user_update.values(spam_level=100))
    rule = {"scope": {"user": {"username": "ada"}}, "action": "ALLOW", "patterns": [CAROL_ADDRESS]}
    assert (await MutationCall("senderRuleCreate", rule)(ada))["errors"] == []
    await deliver_message_to(environment, ada, bob, raw=raw_message("Friend", **SPAM_HEADERS))
    assert await load_quarantine_rows(environment) == []
    assert (await list_inbox_subjects(ada), await list_inbox_subjects(bob)) == (
        ["Friend"],
        ["Friend"],
    )
    await deliver_message_to(
        environment, ada, raw=raw_message("Stranger", **SPAM_HEADERS), sender="x@else.example"
    )
    # the From address is carol's, and it counts too
    assert await list_inbox_subjects(ada) == ["Stranger", "Friend"]
    assert await load_quarantine_rows(environment) == []


async def test_message_too_large_for_quarantine_is_stored_in_junk(ada: GraphQLClient) -> None:
    environment = ada.environment
    set_options(environment, spam_quarantine_score=50, quarantine_max_message_size=1000)
    raw = raw_message("Large", body="x" * 2000, **SPAM_HEADERS)
    (stored,) = await deliver_message_to(environment, ada, raw=raw)
    assert stored is not None
    assert await load_quarantine_rows(environment) == []
    with pytest.raises(LimitReached):
        await quarantine_message(ada, raw)


async def test_repeated_delivery_is_quarantined_once(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    set_options(environment, spam_quarantine_score=50)
    raw = raw_message("Offer", **SPAM_HEADERS)
    for _ in range(2):
        await deliver_message_to(environment, ada, raw=raw)
        clock.tick(hours=3)
    (first,) = await load_quarantine_rows(environment)
    _, errors = await run_mutation(
        ada,
        QUARANTINE_DELETE,
        quarantineItems=[{"id": global_ids.encode("QuarantineItem", first.id)}],
    )
    assert errors == []
    await deliver_message_to(environment, ada, raw=raw)
    # it was there before, and its owner deleted it
    assert await load_quarantine_rows(environment) == []
    clock.tick(days=1)
    await deliver_message_to(environment, ada, raw=raw)
    assert len(await load_quarantine_rows(environment)) == 1


async def test_oldest_items_are_deleted_above_count_or_size_limit(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    set_options(environment, quarantine_max_messages_per_user=3)
    for subject in "abcd":
        await quarantine_message(ada, subject)
        clock.tick(seconds=1)
    assert await list_quarantined_subjects(ada) == ["d", "c", "b"]
    first = (await load_quarantine_rows(environment))[0]
    set_options(environment, quarantine_max_bytes_per_user=first.size * 2)
    position = await load_stream_position(environment, ada.user.id)
    await quarantine_message(ada, "e")
    assert await list_quarantined_subjects(ada) == ["e", "d"]
    entries = await load_journal_entries(environment, ada.user.id, position)
    assert [kind for kind, _ in entries] == [
        EventType.QUARANTINE_HELD,
        EventType.QUARANTINE_EXPIRED,
    ]
    assert first.id in entries[1][1]
    await quarantine_message(ada, raw_message("whale", body="x" * 5000))
    assert await list_quarantined_subjects(ada) == ["whale"]


async def test_quarantined_messages_count_towards_hourly_limit(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    set_options(environment, limits_received_per_hour=2)
    await quarantine_message(ada, "a")
    await quarantine_message(ada, "b")
    with pytest.raises(Exception, match="The account receives mail too quickly"):
        await load_recipient_below_limits(environment, ada.address)
    clock.tick(hours=1)
    assert (await load_recipient_below_limits(environment, ada.address)).user_id == ada.user.id


async def test_long_or_invalid_scan_results_are_truncated(ada: GraphQLClient) -> None:
    symbols = [SpamScanSymbol("S\0" * 200, 1.0, "d\ud800" * 900)] * 300
    await quarantine_message(
        ada,
        raw_message("=?utf-8?q?Nul=00l?="),
        QuarantineReason(1e3, symbols, "Eicar\0" + "x" * 500),
    )
    (row,) = await load_quarantine_rows(ada.environment)
    assert (len(row.symbols), len(row.virus) <= 128) == (200, True)
    assert all(len(symbol["name"]) <= 128 for symbol in row.symbols)
    assert all(len(symbol["description"]) <= 512 for symbol in row.symbols)
    (item,) = (await ada(QUARANTINE_QUERY))["quarantine"]["nodes"]
    assert (item["virus"], item["score"]) == (True, 1000.0)
    for score in (math.nan, math.inf, -math.inf):
        await quarantine_message(
            ada, f"{score}", QuarantineReason(score, [SpamScanSymbol("WILD", score)])
        )
    nodes = (await ada(QUARANTINE_QUERY))["quarantine"]["nodes"]
    assert {node["subject"]: node["score"] for node in nodes[:3]} == {
        "nan": 0.0, "inf": 1e9, "-inf": -1e9,
    }  # fmt: skip
    assert all(node["symbols"][0]["score"] == node["score"] for node in nodes[:3])


async def test_quarantine_for_deleted_account_raises_not_found(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    mail = await pipeline.read_and_verify_incoming(
        ada.environment, raw_message("Late"), CAROL_ADDRESS
    )
    recipient = await load_recipient_below_limits(ada.environment, ada.address)
    delete_input = {"users": {"usernames": ["ada"]}}
    assert (await MutationCall("userDelete", delete_input)(admin_client))["errors"] == []
    with pytest.raises(NotFound):
        await quarantine.quarantine_message(ada.environment, mail, recipient, QUARANTINE_REASON)
    assert await load_quarantine_rows(ada.environment) == []


async def test_text_and_attachments_of_item_are_readable(
    ada: GraphQLClient, http: httpx.AsyncClient
) -> None:
    raw = make_mixed_message()
    item_id = await quarantine_message(ada, raw)
    item = (await ada(QUARANTINE_CONTENTS_QUERY, id=item_id))["node"]
    assert item["text"] == "Look at this."
    picture, attached_message = item["attachments"]
    assert (picture["filename"], picture["contentType"]) == ("a.png", "image/png")
    source = await http.get(item["sourceUrl"])
    assert source.content == raw
    assert source.headers["Cache-Control"] == "no-store"
    file = await http.get(picture["url"])
    assert file.content == bytes(range(256)) * 20
    assert file.headers["Content-Disposition"].startswith("attachment")  # never displayed in a page
    assert attached_message["message"]["subject"] == "Inner"
    (inner_attachment,) = attached_message["message"]["attachments"]
    assert (await http.get(inner_attachment["url"])).content == b"abc\r\n"
    for url in (picture["url"], item["sourceUrl"]):
        assert (await http.get(url.replace("sig=", "sig=x"))).status_code == 401
    assert (await http.get(picture["url"].partition("?")[0])).status_code == 401
    _, errors = await run_mutation(ada, QUARANTINE_DELETE, quarantineItems=[{"id": item_id}])
    assert errors == []
    for url in (picture["url"], item["sourceUrl"], inner_attachment["url"]):
        assert (await http.get(url)).status_code == 404


async def test_text_of_item_is_sanitized_and_truncated(ada: GraphQLClient) -> None:
    page = "<html><script>alert(1)</script><p>Buy</p></html>"
    item_id = await quarantine_message(
        ada, raw_message("Page", body=page, Content_Type="text/html")
    )
    assert (await ada(QUARANTINE_CONTENTS_QUERY, id=item_id))["node"]["text"].strip() == "Buy"
    item_id = await quarantine_message(
        ada, raw_message("Long", body="wörd " * 40_000, Content_Type="text/plain; charset=utf-8")
    )
    assert len((await ada(QUARANTINE_CONTENTS_QUERY, id=item_id))["node"]["text"]) == 65_536


async def test_blobs_are_kept_until_item_expires(
    ada: GraphQLClient, clock: ManualClock, environment: Environment
) -> None:
    item_id = await quarantine_message(ada, make_mixed_message())
    clock.tick(days=29)
    await housekeeping.run_housekeeping_round(environment)
    assert (await ada(QUARANTINE_CONTENTS_QUERY, id=item_id))["node"]["text"] == "Look at this."
    clock.tick(days=1)
    position = await load_stream_position(environment, ada.user.id)
    assert (await housekeeping.run_housekeeping_round(environment)).quarantined == 1
    assert await list_quarantined_subjects(ada) == []
    ((kind, keys), *_) = await load_journal_entries(environment, ada.user.id, position)
    assert (kind, keys) == (
        EventType.QUARANTINE_EXPIRED,
        [global_ids.decode("QuarantineItem", item_id)],
    )
    clock.tick(days=2)
    await housekeeping.run_housekeeping_round(environment)
    assert await select_rows(environment, "SELECT id FROM blobs") == [
        (row[0],)
        for row in await select_rows(environment, "SELECT DISTINCT blob_id FROM message_blobs")
    ]


async def test_consistency_check_covers_quarantine_items(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    environment = ada.environment
    for client in (ada, bob):
        await quarantine_message(client, make_mixed_message())
    assert (await check_consistency(environment)).findings == []
    first, second = await load_quarantine_rows(environment)
    async with environment.write_session() as session:
        connection = await session.connection()
        table = core_table(QuarantineBlob)
        is_whole_message = table.c.blob_id == first.blob_id
        await connection.execute(delete(table).where(is_whole_message, table.c.item_id == first.id))
        await connection.execute(
            delete(table).where(~is_whole_message, table.c.item_id == second.id)
        )
        items = core_table(QuarantineItem)
        wrong_size = update(items).where(items.c.id == second.id)
        await connection.execute(wrong_size.values(size=items.c.size + 1))
    findings = {
        (finding.rule, finding.object)
        for finding in (await check_consistency(environment)).findings
    }
    assert findings == {
        ("root_reference", f"quarantine_items/{first.id}"),
        ("piece_references", f"quarantine_items/{second.id}"),
        ("message_size", f"quarantine_items/{second.id}"),
    }
    for row in (first, second):
        client = ada if row.user_id == ada.user.id else bob
        item_id = global_ids.encode("QuarantineItem", row.id)
        await run_mutation(client, QUARANTINE_DELETE, quarantineItems=[{"id": item_id}])


async def test_legal_hold_contains_deleted_quarantine_item(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    payload = await (await SAMPLE_CALLS["legalHoldCreate"](ada, root))(root)
    assert payload["errors"] == []
    while await tasks.run_next_task(ada.environment):
        pass
    item_id = await quarantine_message(ada, make_mixed_message())
    _, errors = await run_mutation(ada, QUARANTINE_DELETE, quarantineItems=[{"id": item_id}])
    assert errors == []
    copies = "{ legalHolds { nodes { messages { nodes { subject origin mailboxPath } } } } }"
    ((legal_hold),) = (await root(copies))["legalHolds"]["nodes"]
    assert legal_hold["messages"]["nodes"][-1] == {
        "subject": "Mixed", "origin": "RECEIVED", "mailboxPath": None,
    }  # fmt: skip


async def test_item_is_encrypted_if_incoming_mail_is_encrypted(
    ada: GraphQLClient, clock: ManualClock, http: httpx.AsyncClient
) -> None:
    seconds = int((clock() - datetime.now(UTC)).total_seconds()) + 30 * 86_400
    key_pair = make_secret_key("Ada <ada@example.org>", seconds=seconds)
    assert (
        await try_update_users(
            ada, openpgpPublicKey=armored_public_key(key_pair), encryptMessages=True
        )
    )[1] == []
    item_id = await quarantine_message(ada, raw_message("Sealed", body="herons at dawn"))
    url = (await ada(QUARANTINE_CONTENTS_QUERY, id=item_id))["node"]["sourceUrl"]
    encrypted = (await http.get(url)).content
    assert b"herons" not in encrypted
    assert b"herons at dawn" in decrypt_message(encrypted, key_pair)
    assert "herons" not in (
        (await ada(QUARANTINE_CONTENTS_QUERY, id=item_id))["node"]["text"] or ""
    )
    for table in ("blobs", "quarantine_items"):
        assert "herons" not in str(await select_rows(ada.environment, f"SELECT * FROM {table}"))  # noqa: S608
    _, errors = await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}])
    assert errors == []
    source = "{ viewer { user { messages(first: 1) { nodes { sourceUrl } } } } }"
    (node,) = (await ada(source))["viewer"]["user"]["messages"]["nodes"]
    assert (await http.get(node["sourceUrl"])).content == delivery_header_fields(ada) + encrypted
    assert (await try_update_users(ada, encryptMessages=False))[1] == []
    item_id = await quarantine_message(ada, raw_message("Open", body="herons at noon"))
    assert (await try_update_users(ada, encryptMessages=True))[1] == []
    _, errors = await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}])
    (node,) = (await ada(source))["viewer"]["user"]["messages"]["nodes"]
    assert b"herons at noon" in decrypt_message(
        (await http.get(node["sourceUrl"])).content, key_pair
    )
