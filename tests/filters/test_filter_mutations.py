"""Test creating, changing, listing and deleting filters, and who can do it."""

from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from mail import sieve
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from models.users.tables import User
from tests.conftest import GraphQLClient, deliver_to, make_client, raw_message
from tests.support.accounts.user_operations import execute_mutation, make_admin_of_domain
from tests.support.accounts.user_operations import try_create_user as create_user
from tests.support.operations.filter_operations import (
    FILTER_QUERY,
    add_filter,
    delete_filters,
    error_codes_and_paths,
    list_filters,
    run_filter_test,
    summary_pairs,
    try_create_filter,
    try_update_filters,
    user_ref,
)
from tests.support.operations.mailbox_operations import add_mailboxes
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

ALL_CONDITIONS = {
    "from": "ada", "toOrCc": "bob", "subject": "a  b", "listId": "news", "text": "Größe",
    "hasAttachment": False, "larger": 9, "smaller": 5000, "query": "subject:a OR larger:1k",
    "header": {"name": "X-A", "value": "1"},
    "regex": {"name": "X-C", "pattern": "^[0-9]+$"}, "all": [{"regex": {"pattern": "a|b"}}],
    "any": [{"from": "x"}, {"larger": 10}], "not": [{"header": {"name": "X-B"}}],
}  # fmt: skip
ACTIONS = {
    "seen": True, "flag": False, "delete": False, "spam": False, "mailbox": {"path": "A"},
    "copyTo": [{"path": "A"}, {"specialUse": "SENT"}, {"path": "A"}],
    "forwardTo": ["Eve@example.net", "https://example.net/hook?token=secret"],
    "keywords": ["news", "größe", "news"], "removeKeywords": ["old"],
    "reply": {"subject": " Re ", "text": "Hi", "html": "<b>Hi</b>"}, "stop": True,
}  # fmt: skip
NO_CONDITIONS = dict.fromkeys(
    (
        "from",
        "toOrCc",
        "subject",
        "listId",
        "text",
        "hasAttachment",
        "larger",
        "smaller",
        "query",
        "header",
        "regex",
    )
)


async def test_filter_fields_are_set_and_cleared(ada: GraphQLClient) -> None:
    await add_mailboxes(ada, "A")
    filter_ = await add_filter(
        ada, ALL_CONDITIONS, ACTIONS, name=" All ", position=3, metadata={"a": 1}
    )
    query, action = filter_["query"], filter_["action"]
    header = {"name": "X-A", "value": "1", "raw": "X-A: 1"}
    assert {name: query[name] for name in NO_CONDITIONS} == {
        **{name: ALL_CONDITIONS[name] for name in NO_CONDITIONS},
        "header": header,
    }
    assert query["all"] == [{**NO_CONDITIONS, "regex": {"name": None, "pattern": "a|b"}}]
    assert [condition["from"] or condition["larger"] for condition in query["any"]] == ["x", 10]
    assert query["not"] == [
        {**NO_CONDITIONS, "header": {"name": "X-B", "value": "", "raw": "X-B:"}}
    ]
    assert action == {
        **ACTIONS,
        "copyTo": [{"path": "A"}, {"path": "Sent"}],
        "keywords": ["news", "größe"],
        "reply": {"subject": "Re", "text": "Hi", "html": "<b>Hi</b>"},
        "webhook": None,
    }
    assert (
        filter_["name"],
        filter_["position"],
        filter_["active"],
        filter_["metadata"],
        filter_["matchCount"],
    ) == ("All", 3, True, {"a": 1}, 0)
    sieve.compile_script(filter_["sieve"])
    assert filter_["sieve"].startswith(
        "# Not part of the Sieve script: the message is redirected to https://example.net/"
    )
    assert await ada(FILTER_QUERY, id=filter_["id"]) == {"filter": filter_}
    patch = {"query": {"from": None, "larger": 5}, "action": {"forwardTo": None, "stop": False}}
    ((after,), errors) = await try_update_filters(ada, filter_["id"], **patch)
    assert errors == []
    assert after["query"] == {**query, "from": None, "larger": 5}
    assert after["action"] == {**action, "forwardTo": [], "stop": False}
    cleared = {
        "action": dict.fromkeys(ACTIONS) | {"seen": False},
        "query": dict.fromkeys(ALL_CONDITIONS),
    }
    ((cleared_filter,), errors) = await try_update_filters(
        ada, filter_["id"], name=None, metadata=None, **cleared
    )
    assert errors == []
    assert cleared_filter["query"] == {**NO_CONDITIONS, "all": [], "any": [], "not": []}
    assert (cleared_filter["querySummary"], summary_pairs(cleared_filter["actionSummary"])) == (
        [],
        [["Mark as read", "no"]],
    )
    assert (cleared_filter["name"], cleared_filter["metadata"]) == ("", None)
    assert cleared_filter["sieve"] == 'require ["imap4flags"];\nremoveflag ["\\\\Seen"];\n'


async def test_filter_text_is_in_language_of_user(
    ada: GraphQLClient, environment: Environment
) -> None:
    query = {"from": "bob", "smaller": 9, "hasAttachment": True, "header": {"name": "X-A"},
             "regex": {"name": "X-B", "pattern": "a|b"}, "all": [{"regex": {"pattern": "c$"}}],
             "any": [{"toOrCc": "x", "subject": "y"}, {}], "not": [{"text": "z"}]}  # fmt: skip
    action = {"mailbox": {"path": "INBOX"}, "spam": True, "keywords": ["a", "b"], "stop": True,
              "forwardTo": ["eve@example.net"], "reply": {"text": "Hi"}}  # fmt: skip
    filter_ = await add_filter(ada, query, action)
    assert summary_pairs(filter_["querySummary"]) == [
        ["From", "bob"], ["Attachments", "yes"], ["Size", "less than 9 bytes"],
        ["X-A", "present"], ["X-B", "/a|b/"], ["Text", "/c$/"],
        ["One of", "(To or Cc: x, Subject: y) ()"], ["None of", "(Text: z)"],
    ]  # fmt: skip
    assert summary_pairs(filter_["actionSummary"]) == [
        ["Spam", "yes"], ["Move to", "INBOX"], ["Add labels", "a, b"],
        ["Forward to", "eve@example.net"], ["Reply", "yes"], ["No further filters", "yes"],
    ]  # fmt: skip
    async with environment.write_session() as session:
        user_update = update(User).where(col(User.id) == ada.user.id)
        await session.exec(user_update.values(language="de-AT"))
    (after,) = (await list_filters(ada))["nodes"]
    assert summary_pairs(after["querySummary"])[0] == ["Von", "bob"]
    assert summary_pairs(after["actionSummary"])[0] == ["Spam", "ja"]


async def test_filters_are_listed_in_order_of_execution(ada: GraphQLClient) -> None:
    for name, extra in (("c", {}), ("d", {}), ("a", {"position": -1}), ("b", {"position": 0})):
        await add_filter(ada, {}, {"seen": True}, name=name, **extra)
    page = await list_filters(ada, first=3)
    names = [filter_["name"] for filter_ in page["nodes"]]
    assert (names, page["totalCount"]) == (["a", "c", "b"], 4)
    assert page["nodes"][-1]["position"] == 0
    rest = await list_filters(ada, after=page["pageInfo"]["endCursor"])
    assert [filter_["name"] for filter_ in rest["nodes"]] == ["d"]
    ((moved,), _) = await try_update_filters(ada, rest["nodes"][0]["id"], position=-5)
    assert [filter_["name"] for filter_ in (await list_filters(ada))["nodes"]] == [
        "d",
        "a",
        "c",
        "b",
    ]
    assert (await delete_filters(ada, moved["id"]))["deletedIds"] == [moved["id"]]
    assert await ada(FILTER_QUERY, id=moved["id"]) == {"filter": None}
    assert (await list_filters(ada))["totalCount"] == 3


async def test_relay_password_is_kept_and_hidden(
    ada: GraphQLClient, environment: Environment
) -> None:
    relay = "smtps://user:secret-word@relay.example"
    filter_ = await add_filter(ada, {}, {"forwardTo": [relay]})
    hidden_targets = ["smtps://user:***@relay.example"]
    assert filter_["action"]["forwardTo"] == hidden_targets
    assert "secret" not in str(filter_)
    ((encrypted,),) = await select_rows(environment, "SELECT relays FROM filters")
    assert "secret-word" not in encrypted
    ((after,), errors) = await try_update_filters(
        ada, filter_["id"], action={"forwardTo": [*hidden_targets, "x@example.net"]}
    )
    assert (errors, after["action"]["forwardTo"]) == ([], [*hidden_targets, "x@example.net"])
    other, (error,) = await try_create_filter(ada, {}, {"forwardTo": hidden_targets})
    assert (other, error["constraint"]) == (None, "SECRET")


async def test_each_new_filter_target_is_logged(ada: GraphQLClient) -> None:
    document = (
        "{ viewer { user { securityLog(filter: {action: FILTER_FORWARDING_ADDED}) "
        "{ nodes { detail } } } } }"
    )
    filter_ = await add_filter(
        ada, {}, {"forwardTo": ["eve@example.net", "https://h.example/?t=secret"]}
    )
    await try_update_filters(
        ada, filter_["id"], action={"forwardTo": ["eve@example.net", "dan@example.net"]}
    )
    await try_update_filters(ada, filter_["id"], action={"seen": True})
    nodes = (await ada(document))["viewer"]["user"]["securityLog"]["nodes"]
    assert sorted(node["detail"]["target"] for node in nodes) == [
        "dan@example.net", "eve@example.net", "https://h.example"
    ]  # fmt: skip


async def test_deleted_mailbox_deletes_filters_that_use_it(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_mailboxes(ada, "A", "A/B", "C")
    deleted_filters = [
        await add_filter(ada, {}, {"mailbox": {"path": "A/B"}}, name="a"),
        await add_filter(ada, {}, {"copyTo": [{"path": "C"}, {"path": "A"}]}, name="b"),
    ]
    await add_filter(ada, {}, {"mailbox": {"path": "C"}}, name="stays")
    last = await load_stream_position(environment, ada.user.id)
    arguments = {"mailboxes": [{"path": "A"}], "recursive": True}
    assert (await execute_mutation(ada, "mailboxDelete", "deletedIds", **arguments))["errors"] == []
    assert [filter_["name"] for filter_ in (await list_filters(ada))["nodes"]] == ["stays"]
    entries = await load_journal_entries(environment, ada.user.id, last)
    (deleted_ids,) = [
        filter_ids for kind, filter_ids in entries if kind is EventType.FILTER_DELETED
    ]
    assert deleted_ids == sorted(
        global_ids.decode("Filter", filter_["id"]) for filter_ in deleted_filters
    )


async def test_filter_of_another_user_is_not_found(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await add_mailboxes(ada, "A")
    filter_ = await add_filter(ada, {"from": "x"}, {"mailbox": {"path": "A"}})
    before = await list_filters(ada)
    last = await load_stream_position(environment, ada.user.id)
    assert await bob(FILTER_QUERY, id=filter_["id"]) == {"filter": None}
    assert (await list_filters(bob))["totalCount"] == 0
    for _, errors in (
        await try_update_filters(bob, filter_["id"], active=False),
        (None, (await delete_filters(bob, filter_["id"]))["errors"]),
    ):
        assert error_codes_and_paths(errors) == [("NOT_FOUND", ["filters", "0"])]
    (mailbox_row,) = await select_rows(environment, "SELECT id FROM mailboxes WHERE path = 'A'")
    ada_mailbox = {"id": global_ids.encode("Mailbox", mailbox_row[0])}
    assert error_codes_and_paths(
        (await try_create_filter(bob, {}, {"mailbox": ada_mailbox}))[1]
    ) == [("NOT_FOUND", ["action", "mailbox"])]
    assert error_codes_and_paths(
        (await try_create_filter(bob, {}, {"seen": True}, user=user_ref(ada)))[1]
    ) == [("NOT_FOUND", ["user"])]
    assert await list_filters(ada) == before
    assert await load_stream_position(environment, ada.user.id) == last


USER_FILTERS_QUERY = (
    """query ($user: UserRef!) { user(by: $user) { filters { totalCount nodes { name } } } }"""
)


async def test_admin_needs_filters_permission_for_other_users(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    filter_ = await add_filter(ada, {"from": "x"}, {"forwardTo": ["eve@example.net"]}, name="hers")
    with_permission = await make_admin_of_domain(root, AdminPermission.FILTERS, name="boss")
    without_permission = await make_admin_of_domain(root, AdminPermission.IMPERSONATE, name="bare")
    await create_user(root, address="dan@example.net")
    other_domain_admin = await make_admin_of_domain(
        root, AdminPermission.FILTERS, domain="example.net", name="other"
    )
    for client, is_visible in (
        (with_permission, True),
        (without_permission, False),
        (other_domain_admin, False),
        (root, True),
    ):
        result = (await client(FILTER_QUERY, id=filter_["id"]))["filter"]
        assert (result is not None) is is_visible
    assert (await with_permission(USER_FILTERS_QUERY, user=user_ref(ada)))["user"]["filters"][
        "totalCount"
    ] == 1
    assert (await without_permission(USER_FILTERS_QUERY, user=user_ref(ada)))["user"]["filters"][
        "totalCount"
    ] == 0
    _, (error,) = await try_create_filter(
        without_permission, {}, {"seen": True}, user=user_ref(ada)
    )
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "FILTERS")
    new_filter = await add_filter(
        with_permission, {}, {"seen": True}, user=user_ref(ada), name="boss's"
    )
    assert new_filter["user"] == {"username": "ada"}
    ((after,), errors) = await try_update_filters(with_permission, filter_["id"], name="both's")
    assert (errors, after["name"]) == ([], "both's")
    entries = await root("{ auditLog { nodes { mutation actor after } } }")
    (update_entry,) = [
        entry for entry in entries["auditLog"]["nodes"] if entry["mutation"] == "filterUpdate"
    ]
    assert update_entry["after"] == {"name": "both's"}
    document = """query ($filter: FilterFilter) {
      filters(filter: $filter) { totalCount nodes { name } } }"""
    list_filter = {"forward": "EVE@", "user": user_ref(ada)}
    assert (await root(document, filter=list_filter or None))["filters"] == {
        "totalCount": 1, "nodes": [{"name": "both's"}]
    }  # fmt: skip
    assert (await root(document))["filters"]["totalCount"] == 2
    refused = await with_permission.execute(document)
    assert refused["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_filter_list_statement_count_is_independent_of_filters(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    document = """{ users(first: 50) { nodes { username filters { totalCount nodes {
      name querySummary { label } actionSummary { label } user { username }
      action { mailbox { path } copyTo { path } }
    } } } } }"""

    async def count_statements() -> int:
        await root(document)
        del statements[:]
        await root(document)
        return len(statements)

    action = {"mailbox": {"path": "INBOX"}, "copyTo": [{"path": "Sent"}]}
    await add_filter(ada, {"from": "a"}, action)
    expected = await count_statements()
    for nth in range(20):
        client = await make_client(environment, ada.http, f"user{nth}")
        for _ in range(2):
            await add_filter(client, {"from": "a"}, action)
    assert await count_statements() == expected


async def test_filter_test_returns_actions_without_effect(ada: GraphQLClient) -> None:
    await add_mailboxes(ada, "A")
    await add_filter(ada, {"subject": "hello"}, {"mailbox": {"path": "A"}, "seen": True}, name="a")
    await add_filter(ada, {"from": "nobody"}, {"delete": True}, name="b")
    await add_filter(ada, {}, {"mailbox": {"path": "INBOX"}, "flag": True, "stop": True}, name="c")
    await add_filter(ada, {}, {"spam": True}, name="d")
    await add_filter(ada, {}, {"spam": True}, name="e", active=False)
    expected = [
        ("a", True, ["Move to: A", "Mark as read: yes"]),
        ("b", False, []),
        ("c", True, ["Flag: yes", "No further filters: yes"]),
        ("d", True, []),
        ("e", True, []),
    ]
    await deliver_to(ada)
    (message,) = await select_rows(ada.environment, "SELECT id FROM messages")
    ref = {"id": global_ids.encode("Message", message[0])}
    for source in ({"stored": ref}, {"raw": raw_message("Hello").decode()}):
        outcomes = await run_filter_test(ada, message=source)
        assert [
            (outcome["filter"]["name"], outcome["matches"], outcome["actions"])
            for outcome in outcomes
        ] == expected
    before = await load_stream_position(ada.environment, ada.user.id)
    assert [filter_["matchCount"] for filter_ in (await list_filters(ada))["nodes"]] == [0] * 5
    assert await load_stream_position(ada.environment, ada.user.id) == before


async def test_filter_test_with_foreign_message_is_not_found(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await add_filter(ada, {}, {"seen": True})
    await add_filter(bob, {}, {"seen": True})
    await deliver_to(ada)
    (message,) = await select_rows(environment, "SELECT id FROM messages")
    document = """query ($m: MessageSourceInput!, $u: UserRef) {
      filterTest(message: $m, user: $u) { matches } }"""
    ada_message = {"id": global_ids.encode("Message", message[0])}
    for arguments in ({"m": {"stored": ada_message}}, {"u": user_ref(ada), "m": {"raw": "x"}}):
        answer = await bob.execute(document, **arguments)
        assert answer["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    for source in (None, {}, {"stored": ada_message, "raw": "x"}):
        answer = await ada.execute(document, m=source)
        assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_address_trace_includes_filters(ada: GraphQLClient, root: GraphQLClient) -> None:
    filter_ = await add_filter(ada, {"from": "x"}, {"forwardTo": ["eve@example.net"]})
    deleting_filter = await add_filter(ada, {}, {"delete": True})
    await add_filter(ada, {}, {"seen": True})
    await add_filter(ada, {}, {"delete": True}, active=False)
    document = """{ addressTrace(address: "ada@example.org") {
      stage output record { ... on Filter { id } } } }"""
    without_permission = await make_admin_of_domain(root, name="bare")
    steps = [step for step in (await root(document))["addressTrace"] if step["stage"] == "FILTER"]
    assert steps == [
        {"stage": "FILTER", "output": ["eve@example.net"], "record": {"id": filter_["id"]}},
        {"stage": "FILTER", "output": [], "record": {"id": deleting_filter["id"]}},
    ]
    assert {step["stage"] for step in (await without_permission(document))["addressTrace"]} == {
        "ADDRESS", "USER"
    }  # fmt: skip
