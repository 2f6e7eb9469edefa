"""Account exports and imports: content, downloads, rights, limits and expiry."""

import io
import json
import zipfile
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from resolvers.admin import tasks
from resolvers.auth import authentication
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from tests.conftest import (
    GraphQLClient,
    ManualClock,
    client_context,
    deliver_to,
    make_api_key,
    make_client,
    raw_message,
)
from tests.support.accounts.identity_operations import (
    create_identity,
    load_identities_by_address,
    set_allowed_senders,
)
from tests.support.accounts.user_exports import (
    EXPORT_FIELDS,
    FEW_LEVELS,
    FULL_EXPORT_FORMATS,
    HOSTILE_MESSAGES,
    TASK_FIELDS,
    error_codes_and_paths,
    export_account,
    fill_account,
    import_account,
    list_export_ids,
    load_account_state,
    load_export,
    store_raw_message,
)
from tests.support.accounts.user_operations import (
    execute_mutation,
    load_user_row,
    make_admin_of_domain,
    user_global_id,
)
from tests.support.operations import filter_operations
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.mark.parametrize("archive_format", FULL_EXPORT_FORMATS)
async def test_import_restores_the_exported_account(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock, archive_format: str
) -> None:
    await fill_account(ada, clock)
    before = await load_account_state(ada)
    export = await export_account(ada, format=archive_format)
    assert (export["state"], export["format"]) == ("SUCCEEDED", archive_format)
    assert export["user"] == {"username": "ada"}
    message_count = len(before["mail"])
    assert (export["task"]["doneCount"], export["task"]["totalCount"]) == (
        message_count,
        message_count,
    )
    task = await import_account(bob, export["content"])
    assert (task["state"], task["error"]) == ("SUCCEEDED", None)
    assert (task["doneCount"], task["totalCount"]) == (message_count, message_count)
    assert task["result"] == {
        "changedCount": message_count, "storedCount": message_count, "knownCount": 0,
        "unlistedCount": 0, "refused": [],
    }  # fmt: skip
    assert await load_account_state(bob) == before
    repeated = (await import_account(bob, export["content"]))["result"]
    assert (repeated["storedCount"], repeated["knownCount"]) == (0, message_count)
    assert await load_account_state(bob) == before
    duplicated = (await import_account(bob, export["content"], skipKnown=False))["result"]
    assert (duplicated["storedCount"], duplicated["knownCount"]) == (message_count, 0)


async def test_import_restores_labels_and_ends_snoozing(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    received_message = await deliver_to(ada, "Later")
    snoozed_until = (clock() + timedelta(days=2)).isoformat()
    selection = {"select": {"ids": [global_ids.encode("Message", received_message.message_id)]}}
    document = """mutation ($input: MessageUpdateInput!) { messageUpdate(input: $input) {
        updatedCount errors { message } } }"""
    payload = await ada(document, input={**selection, "set": {"snoozedUntil": snoozed_until}})
    assert payload["messageUpdate"] == {"updatedCount": 1, "errors": []}
    create_label = """mutation ($input: LabelCreateInput!) { labelCreate(input: $input) {
        errors { message } } }"""
    for keyword, color in (("work", "#1e90ff"), ("home", None)):
        arguments = {"keyword": keyword, "name": f"At {keyword}", "color": color}
        assert (await ada(create_label, input=arguments))["labelCreate"] == {"errors": []}
    user_document = """{ viewer { user { labels { keyword name color }
        messages { nodes { subject snoozedUntil mailbox { path } } } } } }"""
    before = (await ada(user_document))["viewer"]["user"]
    assert len(before["labels"]) == 2
    assert before["messages"]["nodes"][0]["snoozedUntil"]
    task = await import_account(bob, (await export_account(ada, format="JSON"))["content"])
    assert (task["result"]["storedCount"], task["result"]["refused"]) == (1, [])
    after = (await bob(user_document))["viewer"]["user"]
    assert after["labels"] == before["labels"]
    assert after["messages"]["nodes"] == [
        {"subject": "Later", "snoozedUntil": None, "mailbox": {"path": "INBOX"}}
    ]


async def test_import_restores_permitted_identities(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["Letters"]))
    for client in (ada, bob):
        await set_allowed_senders(client, "*@example.net")
    identity_fields = {
        "name": "Ada", "default": True, "replyTo": "a@example.net", "bcc": ["b@example.net"],
        "signatureText": "-- \nAda", "signatureHtml": "<b>Ada</b>",
        "sentMailbox": {"path": "Letters"},
    }  # fmt: skip
    identity = await create_identity(ada, "ada@example.net", **identity_fields)
    await create_identity(ada, "x@example.net")
    await create_identity(ada, ada.address, name="Ada")
    for _ in range(2):  # the second import changes nothing
        task = await import_account(bob, (await export_account(ada, format="JSON"))["content"])
        refused = [f"identity {ada.address}", "The user is not allowed to send as this address."]
        assert task["result"]["refused"] == [refused]
        identities = await load_identities_by_address(bob)
        after = identities.pop("ada@example.net")
        assert after == {**identity, "id": after["id"]}
        assert set(identities) == {"x@example.net", bob.address}


async def test_import_restores_filters_without_passwords(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["Lists"]))
    action = {"mailbox": {"path": "Lists"}, "copyTo": [{"path": "Sent"}], "keywords": ["x"]}
    query = {"from": "a", "any": [{"larger": 5}, {"not": [{"header": {"name": "X"}}]}]}
    created = await filter_operations.add_filter(
        ada, query, action, name="one", metadata={"a": 1}, active=False
    )
    relay, webhook = "smtp://user:word@relay.example", "https://h.example/"
    await filter_operations.add_filter(
        ada, {}, {"forwardTo": [relay, webhook], "stop": True}, name="two"
    )
    for _ in range(2):  # the second time, the filters exist
        task = await import_account(bob, (await export_account(ada, format="JSON"))["content"])
        message = (
            "The target smtp://user:***@relay.example was not imported: "
            "an archive contains no passwords."
        )
        assert task["result"]["refused"] == [["filter two", message]]
        first, second = (await filter_operations.list_filters(bob))["nodes"]
        changed_fields = ("id", "user", "createdAt", "sieve")
        expected = {name: value for name, value in created.items() if name not in changed_fields}
        assert {name: first[name] for name in expected} == expected
        assert second["action"]["forwardTo"] == [webhook]


INVALID_FILTERS: list[dict[str, Any]] = [
    {"query": {"from": 1}, "action": {"seen": True}},
    {"query": {"any": ["x"]}, "action": {"seen": True}},
    {"query": {"header": {"value": "x"}}, "action": {"seen": True}},
    {"query": {"larger": True}, "action": {"seen": True}},
    {"query": {"other": "x"}, "action": {"seen": True}},
    {"query": {}, "action": {"copyTo": [1]}},
    {"query": {}, "action": {"reply": {"text": 1}}},
    {"query": {}, "action": {"mailbox": "None"}},
    {"query": {}, "action": {}},
    {"action": {"webhook": 7}},
    {"name": 1, "action": {"seen": True}},
    {"position": 1 << 40, "action": {"seen": True}},
]


async def test_imported_filters_are_validated(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await filter_operations.add_filter(ada, {}, {"seen": True})
    first_line, *other_lines = (await export_account(ada, format="JSON"))["content"].splitlines(
        keepends=True
    )
    account = {**json.loads(first_line), "filters": INVALID_FILTERS}
    task = await import_account(bob, b"".join([json.dumps(account).encode(), b"\n", *other_lines]))
    assert (task["state"], len(task["result"]["refused"])) == ("SUCCEEDED", len(INVALID_FILTERS))
    assert (await filter_operations.list_filters(bob))["totalCount"] == 0


async def test_import_restores_sender_rules(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    document = """mutation ($input: SenderRuleCreateInput!) {
        senderRuleCreate(input: $input) { errors { code } } }"""

    async def create_rule(
        client: GraphQLClient, action: str, *patterns: str, **fields: Any
    ) -> None:
        rule_input = {"action": action, "patterns": list(patterns), **fields}
        assert (await client(document, input=rule_input))["senderRuleCreate"]["errors"] == []

    own_scope = {"scope": {"user": {"username": "ada"}}}
    await create_rule(ada, "BLOCK", "spam.example", comment="enough", **own_scope)
    await create_rule(ada, "ALLOW", "news@shop.example", **own_scope)
    await create_rule(root, "BLOCK", "all.example", scope={"global": True})
    await create_rule(bob, "ALLOW", "spam.example", scope={"user": {"username": "bob"}})
    content = (await export_account(ada, format="JSON"))["content"]
    for _ in range(2):
        assert (await import_account(bob, content))["result"]["refused"] == []
        rule_rows = await select_rows(
            bob.environment,
            "SELECT pattern, action, comment FROM sender_rules WHERE user_id = :u ORDER BY pattern",
            u=bob.user.id,
        )
        assert rule_rows == [
            ("news@shop.example", "ALLOW", None),
            ("spam.example", "BLOCK", "enough"),
        ]
    changed_content = content.replace(b'"BLOCK"', b'"MAYBE"')
    refused = (await import_account(bob, changed_content))["result"]["refused"]
    assert refused == [["sender rule spam.example", "The pattern or action is missing."]]


async def test_mbox_export_restores_every_byte(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    await fill_account(ada, clock, levels=FEW_LEVELS)
    export = await export_account(ada, format="MBOX", filter={"mailbox": {"path": "INBOX"}})
    task = await import_account(bob, export["content"], mailbox={"path": "From Ada"})
    assert task["result"]["storedCount"] == len(HOSTILE_MESSAGES)
    messages = (await load_account_state(bob))["mail"]
    assert sorted(raw for path, raw, *_ in messages if path == "From Ada") == sorted(
        HOSTILE_MESSAGES
    )


@pytest.mark.usefixtures("small_transfer_chunks")
async def test_export_of_many_messages_is_downloaded_in_ranges(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    for number in range(20):
        await store_raw_message(ada, raw_message(f"{number}"))
    export = await export_account(ada)
    with zipfile.ZipFile(io.BytesIO(export["content"])) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 1 + 7 + 20
    content = export["content"]
    for first, last in ((0, 10), (700, 5000), (len(content) - 30, len(content) - 1)):
        response = await ada.http.get(export["url"], headers={"Range": f"bytes={first}-{last}"})
        assert (response.status_code, response.content) == (206, content[first : last + 1])
    head_response = await ada.http.head(export["url"])
    assert head_response.headers["content-length"] == str(len(content))
    assert head_response.headers["content-disposition"].startswith('attachment; filename="ada-2030')
    etag = head_response.headers["etag"]
    response = await ada.http.get(export["url"], headers={"If-None-Match": etag})
    assert response.status_code == 304
    assert (await import_account(bob, content))["result"]["storedCount"] == 20


async def test_filter_selects_exported_messages(ada: GraphQLClient) -> None:
    for number in range(3):
        await deliver_to(ada, f"Letter {number}")
    export = await export_account(ada, filter={"subject": "Letter 1"}, format="JSON")
    records = [json.loads(line) for line in export["content"].splitlines()]
    assert [record["kind"] for record in records] == ["account", "message", "end"]
    empty_export = await export_account(
        ada, filter={"subject": "Mailbox not found."}, format="MBOX"
    )
    assert empty_export["content"] == b""


async def test_include_settings_false_omits_settings(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    await fill_account(ada, clock, levels=FEW_LEVELS)
    export = await export_account(ada, format="JSON", includeSettings=False)
    account = json.loads(export["content"].splitlines()[0])
    assert "settings" not in account
    assert "keyValues" not in account
    full_export = await export_account(ada, format="JSON")
    assert b"argon2" not in full_export["content"]
    assert json.loads(full_export["content"].splitlines()[0])["settings"]["name"] == "Ada"


async def test_list_needs_a_constant_number_of_statements(
    ada: GraphQLClient, root: GraphQLClient, statements: list[str]
) -> None:
    document = (
        "{ users { nodes { exports { nodes { id state url task { doneCount } "
        "user { username } } } } } }"
    )

    async def cost() -> int:
        # uses of credentials are recorded in the background
        await authentication.wait_for_background_tasks(ada.environment)
        del statements[:]
        await root(document)
        return len(statements)

    await export_account(ada)
    await root(document)
    expected_count = await cost()
    for number in range(20):
        other = await make_client(ada.environment, ada.http, f"user{number}")
        assert (await execute_mutation(other, "userExport", EXPORT_FIELDS))["errors"] == []
    assert await cost() == expected_count


@pytest.mark.parametrize("start", [None, "2029-01-01T00:00:00Z"])
async def test_imported_message_is_copied_by_an_legal_hold(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, start: str | None
) -> None:
    await store_raw_message(ada, raw_message("Old"))
    content = (await export_account(ada))["content"]
    arguments = {
        "user": {"username": "bob"},
        "expiresAt": "2031-01-01T00:00:00Z",
        "startsAt": start,
    }
    payload = await execute_mutation(root, "legalHoldCreate", "legalHold { id }", **arguments)
    assert payload["errors"] == []
    assert (await import_account(bob, content))["result"]["storedCount"] == 1
    assert await select_rows(ada.environment, "SELECT subject FROM held_copies") == [("Old",)]


async def test_other_users_cannot_read_or_download_an_export(
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    await deliver_to(ada, "Private")
    export = await export_account(ada)
    path = export["url"].partition("?")[0]
    admin = await make_client(environment, http, "admin", role=Role.ADMIN)
    domain_admin = await make_admin_of_domain(root, AdminPermission.IMPERSONATE)
    for other in (bob, admin, domain_admin):
        assert await load_export(other, export["id"]) is None
        response = await http.get(path, headers=other.headers)
        assert response.status_code == 404
        own_path = path.replace(user_global_id(ada), user_global_id(other))
        assert (await http.get(own_path, headers=other.headers)).status_code == 404
    document = "query ($by: UserRef!) { user(by: $by) { exports { nodes { id } } } }"
    for other in (admin, domain_admin):
        (error,) = (await other.execute(document, by={"username": "ada"}))["errors"]
        assert (error["extensions"]["code"], error["path"]) == ("FORBIDDEN", ["user", "exports"])
        payload = await execute_mutation(
            other, "userExport", EXPORT_FIELDS, user={"username": "ada"}
        )
        assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
        archive = {"text": "From a@b.example Tue Jan  6 10:00:00 2026\n\nx\n"}
        payload = await execute_mutation(
            other, "userImport", TASK_FIELDS, user={"username": "ada"}, archive=archive
        )
        assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
    payload = await execute_mutation(bob, "userExport", EXPORT_FIELDS, user={"username": "ada"})
    assert error_codes_and_paths(payload) == [("NOT_FOUND", ["user"])]
    assert (await http.get(path)).status_code == 401
    assert (await http.get(path, headers=ada.headers)).status_code == 200


async def test_root_can_export_and_the_access_is_logged(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, "Private")
    payload = await execute_mutation(root, "userExport", EXPORT_FIELDS, user={"username": "ada"})
    assert payload["errors"] == []
    while await tasks.run_next_task(environment):
        pass
    assert await select_rows(
        environment, "SELECT mutation FROM audit_log ORDER BY id DESC LIMIT 1"
    ) == [("userExport",)]
    statement_text = (
        "SELECT sum(count) FROM security_events WHERE user_id = :u AND action = 'MESSAGES_READ'"
    )
    before = await select_rows(environment, statement_text, u=ada.user.id)
    path = (await load_export(root, payload["userExport"]["id"]))["url"].partition("?")[0]
    response = await root.http.get(path, headers=root.headers)
    assert response.status_code == 200
    ((after,),) = await select_rows(environment, statement_text, u=ada.user.id)
    assert after == before[0][0] + 1 > 1


@pytest.mark.usefixtures("ada")
async def test_refused_export_is_not_logged_as_access(
    root: GraphQLClient, environment: Environment
) -> None:
    arguments = {"user": {"username": "ada"}, "includeSettings": True, "passphrase": "short"}
    payload = await execute_mutation(root, "userExport", EXPORT_FIELDS, **arguments)
    assert error_codes_and_paths(payload) == [("VALIDATION", ["passphrase"])]
    events = await select_rows(environment, "SELECT action FROM security_events")
    assert ("MESSAGES_READ",) not in events


async def test_credential_with_mail_scope_exports_no_settings(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await fill_account(ada, clock, levels=FEW_LEVELS)
    full_export = await export_account(ada)
    secret = await make_api_key(
        environment, "mail", user_id=ada.user.id, role=Role.USER, scopes=[Scope.MAIL]
    )
    mail_client = replace(ada, secret=secret)
    assert await load_export(mail_client, full_export["id"]) is None
    assert await list_export_ids(mail_client) == []
    export = await export_account(mail_client, format="JSON")
    assert "settings" not in json.loads(export["content"].splitlines()[0])
    secret = await make_api_key(
        environment, "bobmail", user_id=bob.user.id, role=Role.USER, scopes=[Scope.MAIL]
    )
    task = await import_account(replace(bob, secret=secret), full_export["content"])
    assert task["result"]["refused"] == [
        ["settings", "Requires the scope SETTINGS, and FULL for another user."],
        [
            "encryption of mailbox Sealed",
            "An encrypted mailbox requires an OpenPGP key of the account.",
        ],
    ]
    assert (await load_user_row(environment, bob)).language is None


@pytest.mark.parametrize("scopes", [[Scope.MAIL, Scope.SETTINGS], [Scope.FULL]], ids=str)
async def test_settings_of_another_user_are_imported_only_with_scope_full(
    ada: GraphQLClient, bob: GraphQLClient, scopes: list[Scope]
) -> None:
    root = await make_client(ada.environment, ada.http, "root", role=Role.ROOT)
    payload = await execute_mutation(ada, "userUpdate", set={"language": "de"})
    assert payload["errors"] == []
    content = (await export_account(ada))["content"]
    secret = await make_api_key(
        root.environment, "import", user_id=root.user.id, role=Role.ROOT, scopes=scopes
    )
    task = await import_account(replace(root, secret=secret), content, user={"username": "bob"})
    refused = [["settings", "Requires the scope SETTINGS, and FULL for another user."]]
    is_full = Scope.FULL in scopes
    assert task["result"]["refused"] == ([] if is_full else refused)
    language = (await load_user_row(root.environment, bob)).language
    assert language == ("de" if is_full else None)


async def test_number_of_running_and_stored_exports_is_limited(ada: GraphQLClient) -> None:
    for _ in range(2):
        assert (await execute_mutation(ada, "userExport", EXPORT_FIELDS))["errors"] == []
    assert (
        error_codes_and_paths(await execute_mutation(ada, "userExport", EXPORT_FIELDS))[0][0]
        == "LIMIT_REACHED"
    )
    while await tasks.run_next_task(ada.environment):
        pass
    first = (await list_export_ids(ada))[-1]
    for _ in range(4):
        await export_account(ada)
    assert len(await list_export_ids(ada)) == 5
    assert await load_export(ada, first) is None


async def test_expired_export_is_deleted_with_its_blobs(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await store_raw_message(ada, raw_message("x", body="y" * 500))
    export = await export_account(ada)
    used = (await load_user_row(environment, ada)).used
    clock.tick(days=3, seconds=1)
    assert await load_export(ada, export["id"]) is None
    assert (await ada.http.get(export["url"])).status_code in (401, 404)
    pieces = await select_rows(environment, "SELECT blob_id FROM export_parts")
    counts = await housekeeping.run_housekeeping_round(environment)
    assert counts.exports == 1
    assert counts.blobs >= len(pieces) > 0
    assert await select_rows(environment, "SELECT id FROM export_parts") == []
    assert (await load_user_row(environment, ada)).used == used


async def test_export_can_be_cancelled(ada: GraphQLClient, environment: Environment) -> None:
    await deliver_to(ada)
    payload = await execute_mutation(ada, "userExport", EXPORT_FIELDS)
    arguments = {"tasks": [{"id": payload["userExport"]["task"]["id"]}]}
    assert (await execute_mutation(ada, "taskCancel", "tasks { state }", **arguments))[
        "errors"
    ] == []
    assert not await tasks.run_next_task(environment)
    export = await load_export(ada, payload["userExport"]["id"])
    assert (export["state"], export["url"], export["size"]) == ("CANCELLED", None, None)
