"""Test automatic replies in the API: set, delete, preview, export and access of other users."""

from typing import Any

import pytest

from graph.types import global_ids
from mail.maintenance import expired_addresses
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import GraphQLClient, ManualClock, deliver_to, make_client, raw_message
from tests.support.accounts.deleted_users import LATER, delete_users, restore_user
from tests.support.accounts.user_exports import export_account, import_account
from tests.support.accounts.user_operations import (
    count_statements_by_user_count,
    execute_mutation,
    load_journal_changes,
    make_admin_of_domain,
    user_global_id,
)
from tests.support.case_loop import each_case
from tests.support.operations.address_operations import try_create_temporary_address
from tests.support.sample_mutations import MutationCall
from tests.support.stores.counter_check import load_stream_position, select_rows

FIELDS = """enabled name subject text html internalSubject internalText internalHtml startsAt endsAt
  addresses interval activeNow createdAt"""
PAYLOAD_FIELDS = f"autoreplies {{ {FIELDS} }} users {{ username }}"
AUTOREPLY_QUERY = f"{{ viewer {{ user {{ autoreply {{ id {FIELDS} }} }} }} }}"
DEFAULT_AUTOREPLY: dict[str, Any] = {
    "enabled": False, "name": None, "subject": None, "text": None, "html": None,
    "internalSubject": None, "internalText": None, "internalHtml": None, "startsAt": None,
    "endsAt": None, "addresses": [], "interval": "P1D", "activeNow": False, "createdAt": None,
}  # fmt: skip
PREVIEW_QUERY = """query ($sender: EmailAddress, $subject: String, $to: EmailAddress,
    $message: MessageRef) { viewer { user { autoreply { preview(sender: $sender,
    subject: $subject, to: $to, message: $message) {
      suppressedBecause internal from fromName to subject text html } } } } }"""


async def set_autoreply(client: GraphQLClient, users: Any = None, **fields: Any) -> Any:
    extra = {"users": users} if users else {}
    return await execute_mutation(client, "autoreplySet", PAYLOAD_FIELDS, set=fields, **extra)


async def delete_autoreplies(client: GraphQLClient, *targets: GraphQLClient) -> Any:
    users = {"ids": [user_global_id(target) for target in targets or [client]]}
    return await MutationCall("autoreplyDelete", {"users": users}, "users { username }")(client)


async def load_autoreply(client: GraphQLClient) -> Any:
    autoreply = (await client(AUTOREPLY_QUERY))["viewer"]["user"]["autoreply"]
    return {name: value for name, value in autoreply.items() if name != "id"}


async def preview_reply(client: GraphQLClient, **arguments: Any) -> Any:
    return (await client(PREVIEW_QUERY, **arguments))["viewer"]["user"]["autoreply"]["preview"]


def error_details(answer: Any) -> list[tuple[str, list[str], Any]]:
    return [
        (error["code"], error["path"], error.get("constraint") or error.get("ref"))
        for error in answer["errors"]
    ]


async def test_autoreply_has_defaults_until_set(ada: GraphQLClient) -> None:
    assert await load_autoreply(ada) == DEFAULT_AUTOREPLY


async def test_set_keeps_omitted_fields(ada: GraphQLClient, clock: ManualClock) -> None:
    first = await set_autoreply(ada, enabled=True, text="I am away.", html="<p>Away", name="Ada")
    assert first["errors"] == []
    clock.tick(days=1)
    answer = await set_autoreply(ada, subject="Away", interval="P7D", endsAt="2030-01-09T00:00:00Z")
    expected = {
        **DEFAULT_AUTOREPLY, "enabled": True, "text": "I am away.", "html": "<p>Away",
        "name": "Ada",
        "subject": "Away", "interval": "P7D", "endsAt": "2030-01-09T00:00:00Z",
        "activeNow": True, "createdAt": "2030-01-01T00:00:00Z",
    }  # fmt: skip
    assert answer["autoreplies"] == [expected] == [await load_autoreply(ada)]
    assert answer["users"] == [{"username": "ada"}]
    answer = await set_autoreply(
        ada, text=None, name=None, interval=None, endsAt=None, subject=None
    )
    cleared = {"text": None, "name": None, "interval": "P1D", "endsAt": None, "subject": None}
    assert answer["autoreplies"] == [{**expected, **cleared}]


async def test_autoreply_is_active_between_start_and_end(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    times = {"startsAt": "2030-01-02T00:00:00Z", "endsAt": "2030-01-03T00:00:00+00:00"}
    await set_autoreply(ada, enabled=True, text="x", **times)
    active = []
    for _ in range(3):
        active.append((await load_autoreply(ada))["activeNow"])
        clock.tick(days=1)
    assert active == [False, True, False]


INVALID_AUTOREPLIES: list[tuple[dict[str, Any], tuple[list[str], str]]] = [
    ({}, (["set"], "REQUIRED")),
    ({"name": "x" * 129}, (["set", "name"], "PATTERN")),
    ({"name": "a\nb"}, (["set", "name"], "PATTERN")),
    ({"subject": "a\r\nBcc: x"}, (["set", "subject"], "PATTERN")),
    ({"subject": "ä" * 1025}, (["set", "subject"], "MAX")),
    ({"internalSubject": "\x07"}, (["set", "internalSubject"], "PATTERN")),
    ({"text": "x" * (128 * 1024 + 1)}, (["set", "text"], "MAX")),
    ({"html": "ä" * (64 * 1024 + 1)}, (["set", "html"], "MAX")),
    ({"internalText": "x" * (128 * 1024 + 1)}, (["set", "internalText"], "MAX")),
    ({"interval": "PT59M"}, (["set", "interval"], "RANGE")),
    ({"interval": "P367D"}, (["set", "interval"], "RANGE")),
    ({"startsAt": "2030-01-02T00:00:00Z", "endsAt": "2030-01-02T00:00:00Z"},
     (["set", "endsAt"], "RANGE")),
    ({"enabled": True}, (["set", "text"], "REQUIRED")),
    ({"enabled": True, "text": " ", "subject": "x"}, (["set", "text"], "REQUIRED")),
    ({"addresses": ["ada@example.org"] * 51}, (["set", "addresses"], "MAX")),
    ({"addresses": ["bob@example.org"]}, (["set", "addresses", "0"], "bob@example.org")),
    ({"addresses": ["ada@elsewhere.example"]},
     (["set", "addresses", "0"], "ada@elsewhere.example")),
]  # fmt: skip


@pytest.mark.usefixtures("bob")
async def test_invalid_autoreply_is_refused_with_rule(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_AUTOREPLIES):
        with case as (arguments, error):
            answer = await set_autoreply(ada, **arguments)
            assert [(path, rule) for _, path, rule in error_details(answer)] == [error]
            assert await load_autoreply(ada) == DEFAULT_AUTOREPLY


async def test_all_invalid_fields_are_reported(ada: GraphQLClient) -> None:
    answer = await set_autoreply(ada, name="x" * 200, text="x" * 200_000, interval="PT1S")
    assert sorted(path[1] for _, path, _ in error_details(answer)) == ["interval", "name", "text"]


async def test_text_is_required_while_enabled(ada: GraphQLClient) -> None:
    await set_autoreply(ada, enabled=True, text="x")
    assert error_details(await set_autoreply(ada, text="")) == [
        ("VALIDATION", ["set", "text"], "REQUIRED")
    ]
    assert (await set_autoreply(ada, text="", internalText="y"))["errors"] == []
    assert error_details(
        await set_autoreply(ada, endsAt="2030-01-02T00:00:00Z", startsAt="2030-01-03T00:00:00Z")
    )
    await set_autoreply(ada, startsAt="2030-01-03T00:00:00Z")
    refused = await set_autoreply(ada, endsAt="2030-01-02T00:00:00Z")
    assert error_details(refused) == [("VALIDATION", ["set", "endsAt"], "RANGE")]


async def test_own_addresses_in_any_spelling_are_normalized(ada: GraphQLClient) -> None:
    answer = await set_autoreply(ada, addresses=["A.da@EXAMPLE.org", "ada+news@example.org"])
    assert answer["autoreplies"][0]["addresses"] == ["ada@example.org"]
    answer = await set_autoreply(ada, addresses=None)
    assert answer["autoreplies"][0]["addresses"] == []


async def test_deleted_autoreply_has_defaults_again(
    ada: GraphQLClient, environment: Environment
) -> None:
    await set_autoreply(ada, enabled=True, text="x")
    for _ in range(2):
        answer = await delete_autoreplies(ada)
        assert (answer["errors"], answer["users"]) == ([], [{"username": "ada"}])
        assert await load_autoreply(ada) == DEFAULT_AUTOREPLY
    assert await select_rows(environment, "SELECT id FROM autoreplies") == []


async def test_changes_write_journal_entries(ada: GraphQLClient, environment: Environment) -> None:
    last = await load_stream_position(environment, ada.user.id)
    await set_autoreply(ada, enabled=True, text="x")
    await set_autoreply(ada, enabled=True, text="x")
    await set_autoreply(ada, subject="S")
    await delete_autoreplies(ada)
    entries = await load_journal_changes(environment, ada.user.id, last)
    assert entries == [
        (EventType.AUTOREPLY_ENABLED, [ada.user.id], [["enabled", "text"]]),
        (EventType.AUTOREPLY_UPDATED, [ada.user.id], [["subject"]]),
        (EventType.AUTOREPLY_DISABLED, [ada.user.id], [["enabled"]]),
    ]


async def test_change_events_have_current_autoreply(ada: GraphQLClient) -> None:
    cursor = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    await set_autoreply(ada, enabled=True, text="x")
    document = """query ($after: Cursor!) { changes(after: $after) { events { type
      ... on UserChange { nodeId node { ... on Autoreply { text } } } } } }"""
    (event,) = (await ada(document, after=cursor))["changes"]["events"]
    assert event["node"] == {"text": "x"}
    await delete_autoreplies(ada)
    first, last = (await ada(document, after=cursor))["changes"]["events"]
    assert first["nodeId"] == last["nodeId"] == event["nodeId"]
    assert last["node"] is None


async def test_autoreply_of_another_user_is_hidden(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await set_autoreply(ada, enabled=True, text="x")
    ada_selection, before = {"ids": [user_global_id(ada)]}, await load_autoreply(ada)
    assert [
        code for code, _, _ in error_details(await set_autoreply(bob, ada_selection, text="y"))
    ] == ["NOT_FOUND"]
    answer = await delete_autoreplies(bob, ada)
    assert [code for code, _, _ in error_details(answer)] == ["NOT_FOUND"]
    autoreply_id = global_ids.encode("Autoreply", ada.user.id)
    assert (await bob("query ($id: ID!) { node(id: $id) { id } }", id=autoreply_id)) == {
        "node": None
    }
    assert (await ada("query ($id: ID!) { node(id: $id) { id } }", id=autoreply_id))["node"] == {
        "id": autoreply_id
    }
    assert await load_autoreply(ada) == before
    assert await load_autoreply(bob) == DEFAULT_AUTOREPLY


async def test_domain_admin_sets_autoreply_of_several_users(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    domain_admin = await make_admin_of_domain(root)
    users = {"ids": [user_global_id(ada), user_global_id(bob)]}
    await set_autoreply(bob, subject="Mine")
    answer = await set_autoreply(domain_admin, users, enabled=True, text="We have moved.")
    assert [(autoreply["subject"], autoreply["text"]) for autoreply in answer["autoreplies"]] == [
        (None, "We have moved."), ("Mine", "We have moved."),
    ]  # fmt: skip
    log_rows = await select_rows(
        environment, "SELECT after FROM audit_log WHERE mutation = 'autoreplySet'"
    )
    assert len(log_rows) == 2
    assert not any("moved" in str(row[0]) for row in log_rows)
    refused = await set_autoreply(domain_admin, users, addresses=["ada@example.org"])
    assert error_details(refused) == [("VALIDATION", ["set", "addresses"], "EXCLUSIVE")]
    other_admin = await make_admin_of_domain(
        root, AdminPermission.FILTERS, domain="example.org", name="other"
    )
    assert (await set_autoreply(other_admin, users, text="x"))["errors"] == []


async def test_autoreply_statement_count_is_independent_of_users(
    root: GraphQLClient, statements: list[str]
) -> None:
    document = "{ users(first: 50) { nodes { autoreply { text interval } } } }"
    single, multiple, repeated = await count_statements_by_user_count(root, document, statements)
    assert single == multiple == repeated
    preview_field = 'preview(sender: "carol@example.com") { suppressedBecause }'
    document = f"{{ users(first: 50) {{ nodes {{ autoreply {{ {preview_field} }} }} }} }}"
    del statements[:]
    await root(document)
    expected = len(statements)
    for nth in range(5):
        await make_client(root.environment, root.http, f"more{nth}")
    del statements[:]
    await root(document)
    assert len(statements) == expected


async def test_set_statement_count_is_independent_of_users(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, statements: list[str]
) -> None:
    counts = list[int]()
    for clients in ([bob], [ada], [ada, bob]):
        del statements[:]
        answer = await set_autoreply(
            root,
            {"ids": [user_global_id(client) for client in clients]},
            enabled=True,
            text=f"{len(counts)}",
        )
        assert answer["errors"] == []
        counts.append(len(statements))
    assert counts[1] == counts[2]


async def test_preview_shows_reply(ada: GraphQLClient, environment: Environment) -> None:
    await set_autoreply(ada, enabled=True, html="<p>I am <b>away</b>.</p>", internalText="Call me.")
    outside = await preview_reply(ada, sender="carol@example.com", subject="Lunch?")
    assert outside == {
        "suppressedBecause": None, "internal": False, "from": "ada@example.org", "fromName": None,
        "to": "carol@example.com", "subject": "Auto: Re: Lunch?", "text": "I am away.",
        "html": "<p>I am <b>away</b>.</p>",
    }  # fmt: skip
    inside = await preview_reply(ada, sender="bob@example.org", to="a.da+x@example.org")
    assert (inside["internal"], inside["text"], inside["html"]) == (True, "Call me.", None)
    assert (inside["from"], inside["suppressedBecause"]) == ("a.da+x@example.org", None)
    for table in ("autoreply_senders", "submissions", "usages"):
        assert await select_rows(environment, f"SELECT 1 FROM {table}") == []  # noqa: S608 - constant names


async def test_preview_shows_reason_of_suppressed_reply(ada: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({"text": "x"}, "carol@example.com", "OFF"),
        (
            {"text": "x", "enabled": True, "startsAt": "2031-01-01T00:00:00Z"},
            "c@d.example",
            "NOT_NOW",
        ),
        ({"internalText": "x", "enabled": True}, "carol@example.com", "EMPTY"),
        ({"text": "x", "enabled": True}, "no-reply@example.com", "AUTOMATIC_SENDER"),
        ({"text": "x", "enabled": True}, "a.da@example.org", "OWN"),
        ({"text": "x", "enabled": True}, "carol@example.com", None),
    ]
    for case in each_case(cases):
        with case as (arguments, sender, suppressed_because):
            await delete_autoreplies(ada)
            await set_autoreply(ada, **arguments)
            preview = await preview_reply(ada, sender=sender)
            assert preview["suppressedBecause"] == suppressed_because
            assert preview["text"] == ("x" if suppressed_because != "EMPTY" else None)


async def test_preview_of_received_message_shows_reply_or_reason(ada: GraphQLClient) -> None:
    await set_autoreply(ada, enabled=True, text="x")
    personal = raw_message("Lunch?", To="ada@example.org")
    list_message = raw_message("News", To="ada@example.org", List_Id="<birds.example.com>")
    inserted = [await deliver_to(ada, raw) for raw in (personal, list_message)]
    references = [{"id": global_ids.encode("Message", item.message_id)} for item in inserted]
    preview = await preview_reply(ada, message=references[0])
    assert (preview["to"], preview["subject"]) == ("carol@example.com", "Auto: Re: Lunch?")
    assert preview["suppressedBecause"] is None
    assert (await preview_reply(ada, message=references[1]))["suppressedBecause"] == "LIST_MAIL"


@pytest.mark.usefixtures("bob")
async def test_invalid_preview_is_refused(ada: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "BAD_USER_INPUT"),
        ({"sender": "carol@example.com", "to": "bob@example.org"}, "NOT_FOUND"),
        ({"message": {"emailId": "0" * 32}}, "NOT_FOUND"),
    ]
    for case in each_case(cases):
        with case as (arguments, code):
            answer = await ada.execute(PREVIEW_QUERY, **arguments)
            assert [error["extensions"]["code"] for error in answer["errors"]] == [code]


async def test_autoreply_survives_export_and_import(ada: GraphQLClient, bob: GraphQLClient) -> None:
    fields = {
        "enabled": True, "text": "Away.", "internalHtml": "<p>In", "name": "Ada", "interval": "P3D",
        "endsAt": "2030-02-01T00:00:00Z", "subject": "S",
    }  # fmt: skip
    await set_autoreply(ada, **fields)
    content = (await export_account(ada, format="JSON"))["content"]
    answer = await import_account(bob, content)
    assert answer["state"] == "SUCCEEDED"
    assert await load_autoreply(bob) == await load_autoreply(ada)
    await set_autoreply(ada, addresses=["ada@example.org"], text="Sales are closed.")
    content = (await export_account(ada, format="JSON"))["content"]
    await delete_autoreplies(bob)
    await import_account(bob, content)
    bob_autoreply = await load_autoreply(bob)
    assert (bob_autoreply["text"], bob_autoreply["enabled"], bob_autoreply["addresses"]) == (
        "Sales are closed.", False, [],
    )  # fmt: skip


async def test_deleted_address_is_removed_and_last_one_turns_autoreply_off(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    chosen = ["sales@example.org", "news@example.org"]
    for address in chosen:
        created = await execute_mutation(
            root, "addressCreate", "address { id }", address=address, user={"username": "ada"}
        )
        assert created["errors"] == []
    await set_autoreply(ada, enabled=True, text="x", addresses=chosen)
    last = await load_stream_position(environment, ada.user.id)
    states = []
    for address in chosen:
        refs = [{"address": address}]
        await execute_mutation(root, "addressDelete", "deletedIds", addresses=refs)
        autoreply = await load_autoreply(ada)
        states.append([autoreply[name] for name in ("addresses", "enabled", "activeNow")])
    assert states == [[["news@example.org"], True, True], [[], False, False]]
    changes = await load_journal_changes(environment, ada.user.id, last)
    assert [change for change in changes if change[0] != EventType.ADDRESS_DELETED] == [
        (EventType.AUTOREPLY_UPDATED, [ada.user.id], [["addresses"]]),
        (EventType.AUTOREPLY_DISABLED, [ada.user.id], [["addresses", "enabled"]]),
    ]


async def test_expired_or_unrestored_address_turns_autoreply_off(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    created, _ = await try_create_temporary_address(ada, validity="P2D")
    await set_autoreply(ada, enabled=True, text="x", addresses=[created["address"]])
    clock.tick(days=40)
    assert (await load_autoreply(ada))["enabled"] is True
    assert await expired_addresses.delete_addresses_after_reservation(environment) == 1
    autoreply = await load_autoreply(ada)
    assert (autoreply["enabled"], autoreply["addresses"]) == (False, [])

    taken = {"address": "sales@example.org"}
    await execute_mutation(
        root, "addressCreate", "address { id }", user={"username": "ada"}, **taken
    )
    await set_autoreply(ada, enabled=True, addresses=[taken["address"]])
    await delete_users(root, ada.user.id, purgeAt=LATER)
    boss = await make_client(environment, root.http, "boss")
    await execute_mutation(
        root, "addressCreate", "address { id }", user={"username": boss.user.username}, **taken
    )
    assert (await restore_user(root, username="ada"))[1] == []
    rows = await select_rows(
        environment, "SELECT enabled, addresses FROM autoreplies WHERE id = :key", key=ada.user.id
    )
    ((enabled, addresses),) = rows
    assert (bool(enabled), addresses) in ((False, []), (False, "[]"))


async def test_error_of_missing_text_names_all_texts(ada: GraphQLClient) -> None:
    (error,) = (await set_autoreply(ada, enabled=True))["errors"]
    for name in ("text", "html", "internalText", "internalHtml"):
        assert f"`{name}`" in error["message"]
