"""Test filterImport: Sieve scripts that become filters, all or none."""

from typing import Any

from graph.types import global_ids
from mail.sieve import limits
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.user_operations import make_admin_of_domain
from tests.support.case_loop import each_case
from tests.support.operations.filter_operations import (
    add_filter,
    error_codes_and_paths,
    import_filters,
    list_filters,
    run_filter_test,
    user_ref,
)
from tests.support.operations.mailbox_operations import add_mailboxes
from tests.support.stores.counter_check import load_journal_entries, load_stream_position

REQUIRE_LINE = 'require ["fileinto", "imap4flags", "copy", "vacation", "regex", "special-use"];\n'
PLAIN_COMPARATOR = '"comparator-vnd.merganser.plain"'
SCRIPT = f"""{REQUIRE_LINE}
# rule:[Lists]
if header :contains "list-id" "news" {{ addflag "news"; fileinto "A"; stop; }}
# Big ones
if size :over 1M {{ redirect :copy "eve@example.net"; }}
else {{ fileinto :specialuse "\\\\Sent" "B"; }}
"""


def names_and_order(payload: Any) -> list[tuple[str, int]]:
    return [(filter_["name"], filter_["position"]) for filter_ in payload["filters"]]


async def test_imported_filters_are_added_after_existing_ones(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_mailboxes(ada, "A")
    await add_filter(ada, {}, {"seen": True}, name="mine", position=4)
    last = await load_stream_position(environment, ada.user.id)
    payload = await import_filters(ada, SCRIPT)
    assert (payload["errors"], payload["warnings"]) == ([], [])
    assert names_and_order(payload) == [("Lists", 5), ("Big ones", 6), ("", 7)]
    first, second, third = payload["filters"]
    assert (first["query"]["listId"], first["active"], first["matchCount"]) == ("news", True, 0)
    assert first["action"]["mailbox"] == {"path": "A"}
    assert (first["action"]["keywords"], first["action"]["stop"]) == (["news"], True)
    assert (second["query"]["larger"], second["action"]["forwardTo"]) == (
        1 << 20,
        ["eve@example.net"],
    )
    assert third["action"]["mailbox"] == {"path": "Sent"}
    assert [filter_["larger"] for filter_ in third["query"]["not"]] == [1 << 20]
    assert [filter_["name"] for filter_ in (await list_filters(ada))["nodes"]] == [
        "mine",
        "Lists",
        "Big ones",
        "",
    ]
    (changed_ids,) = [
        filter_ids
        for kind, filter_ids in await load_journal_entries(environment, ada.user.id, last)
        if kind is EventType.FILTER_CREATED
    ]
    assert changed_ids == [
        global_ids.decode("Filter", filter_["id"]) for filter_ in payload["filters"]
    ]
    document = (
        "{ viewer { user { securityLog(filter: {action: FILTER_FORWARDING_ADDED}) "
        "{ nodes { detail } } } } }"
    )
    (event,) = (await ada(document))["viewer"]["user"]["securityLog"]["nodes"]
    assert event["detail"]["target"] == "eve@example.net"


async def test_imported_filter_acts_on_message(ada: GraphQLClient) -> None:
    await add_mailboxes(ada, "A")
    script = f'{REQUIRE_LINE}if header :is "subject" "Hello" {{ addflag "x"; fileinto "A"; }}'
    payload = await import_filters(ada, script)
    assert payload["errors"] == []
    (outcome,) = await run_filter_test(ada, message={"raw": raw_message("Hello").decode()})
    assert (outcome["matches"], outcome["actions"]) == (True, ["Move to: A", "Add labels: x"])
    (outcome,) = await run_filter_test(ada, message={"raw": raw_message("Hello you").decode()})
    assert not outcome["matches"]


async def test_import_with_replace_deletes_other_filters(ada: GraphQLClient) -> None:
    await add_mailboxes(ada, "A")
    await add_filter(ada, {}, {"seen": True}, name="mine", position=4)
    payload = await import_filters(ada, SCRIPT, replace=True)
    assert names_and_order(payload) == [("Lists", 0), ("Big ones", 1), ("", 2)]
    assert (await list_filters(ada))["totalCount"] == 3
    script = "\n".join(
        line
        for filter_ in payload["filters"]
        for line in (f"# {filter_['name']}", *filter_["sieve"].splitlines())
        if not line.startswith("require")
    )
    reimported = await import_filters(
        ada, f"{REQUIRE_LINE[:-3]}, {PLAIN_COMPARATOR}];\n{script}", replace=True
    )
    assert (reimported["errors"], reimported["warnings"]) == ([], [])
    fields = ("name", "query", "action", "position")
    assert [{name: filter_[name] for name in fields} for filter_ in reimported["filters"]] == [
        {name: filter_[name] for name in fields} for filter_ in payload["filters"]
    ]
    empty = await import_filters(ada, "", replace=True)
    assert (empty["filters"], empty["errors"]) == ([], [])
    assert (await list_filters(ada))["totalCount"] == 0


async def test_import_warns_about_actions_that_export_only_has_as_comments(
    ada: GraphQLClient,
) -> None:
    targets = ["https://h.example/in", "eve@example.net"]
    exported = await add_filter(ada, {"subject": "x"}, {"forwardTo": targets}, name="mine")
    payload = await import_filters(ada, exported["sieve"])
    assert payload["errors"] == []
    assert [warning["message"] for warning in payload["warnings"]] == [
        "line 1, column 1: The comment can't be imported: it was omitted."
    ]
    (imported,) = payload["filters"]
    assert (imported["name"], imported["action"]["forwardTo"]) == ("", targets[1:])


async def test_import_warns_where_filters_differ_from_script(ada: GraphQLClient) -> None:
    flags = 'if size :over 5 { addflag "x"; }\nsetflag "y";\nstop;\nkeep;'
    payload = await import_filters(ada, f'require "imap4flags";\n{flags}')
    assert payload["errors"] == []
    assert [(warning["code"], warning["path"]) for warning in payload["warnings"]] == [
        ("FILTER_DIFFERS", ["content"])
    ] * 2
    assert [warning["message"].partition(": ")[0] for warning in payload["warnings"]] == [
        "line 3, column 1", "line 5, column 1"
    ]  # fmt: skip


INVALID_SCRIPTS = [
    ('if envelope "from" "a" { keep; stop; }', "UNSUPPORTED", "line 2, column 4: Filters have no"),
    ('fileinto "Nowhere";', "UNKNOWN", 'line 2, column 1: Mailbox not found: Nowhere.'),
    ('fileinto :create "Nowhere";', "UNKNOWN", "line 2, column 1: Mailbox not found: Nowhere."),
    ('if header :contains "x" " " { stop; }', "LENGTH", "line 2, column 31: "),
    (f'if header :contains "x" "{"y" * 256}" {{ stop; }}', "LENGTH", "line 2, column 286: "),
    (f'if header "x" "{"y" * 199}" {{ stop; }}', "PATTERN", "line 2, column 219: "),
    ('if size :over 1 { redirect "ada@example.org"; }', "SELF", "line 2, column 19: A filter"),
    ('addflag "\\\\Deleted";', "PATTERN", "line 2, column 1: "),
    ('vacation " ";', "REQUIRED", "line 2, column 1: A reply requires"),
    ("redirect :copy \"a@b.example\";" + ''.join(
        f' redirect :copy "{local}@b.example";' for local in "bcde"), "MAX", "line 2, column 1: "),
    ("if not not not not not not not size :over 1 { stop; }", "DEPTH", "line 2, column 47: "),
]  # fmt: skip


async def test_invalid_script_imports_nothing(ada: GraphQLClient, environment: Environment) -> None:
    await add_filter(ada, {}, {"seen": True}, name="mine")
    before, last = await list_filters(ada), await load_stream_position(environment, ada.user.id)
    require_line = REQUIRE_LINE[:-3].strip() + ', "envelope", "mailbox"];'
    for case in each_case(INVALID_SCRIPTS):
        with case as (text, constraint, message):
            script = f"{require_line}\n{text}\nif size :over 9 {{ discard; }}"
            payload = await import_filters(ada, script, replace=True)
            assert payload["filters"] == []
            (error,) = payload["errors"]
            assert (error["code"], error["path"]) == ("VALIDATION", ["content"])
            assert error["constraint"] == constraint
            assert error["message"].startswith(message)
            assert await list_filters(ada) == before
            assert await load_stream_position(environment, ada.user.id) == last


async def test_import_reports_all_errors_up_to_limit(ada: GraphQLClient) -> None:
    payload = await import_filters(ada, f'{REQUIRE_LINE}fileinto "A";\nfileinto "A"; fileinto "B";')
    assert [error["message"] for error in payload["errors"]] == [
        "line 2, column 1: Mailbox not found: A.", "line 3, column 15: Mailbox not found: B."
    ]  # fmt: skip
    lines = 'if size :over 1 { addflag "\\\\Draft"; stop; }\n' * 30
    over_limit = await import_filters(ada, f"{REQUIRE_LINE}{lines}")
    assert len(over_limit["errors"]) == limits.MAX_PROBLEMS


async def test_import_reports_compile_errors(ada: GraphQLClient) -> None:
    payload = await import_filters(ada, 'if true {\n  fileinto "A";\n  nothing;\n}')
    positions = [(error["code"], error["line"], error["column"]) for error in payload["errors"]]
    assert positions == [("SIEVE_COMPILE", 2, 3), ("SIEVE_COMPILE", 3, 3)]
    too_long = await import_filters(ada, f"# {'x' * limits.MAX_SCRIPT_BYTES}")
    assert [(error["constraint"], error["path"]) for error in too_long["errors"]] == [
        ("MAX", ["content"])
    ]


async def test_import_over_filter_limit_is_refused(ada: GraphQLClient) -> None:
    rule = "if size :over 9 { discard; stop; }\n"
    payload = await import_filters(ada, rule * 401)
    (error,) = payload["errors"]
    assert error["message"] == "line 401, column 19: A script can become at most 400 filters."
    assert (await import_filters(ada, rule * 400))["errors"] == []
    (error,) = (await import_filters(ada, rule))["errors"]
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 400, 400)
    assert error["path"] == ["content"]
    payload = await import_filters(ada, rule * 2, replace=True)
    assert (payload["errors"], (await list_filters(ada))["totalCount"]) == ([], 2)


async def test_import_with_validate_only_changes_nothing(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_filter(ada, {}, {"seen": True}, name="mine")
    before, last = await list_filters(ada), await load_stream_position(environment, ada.user.id)
    options = {"options": {"validateOnly": True}, "replace": True}
    assert (await import_filters(ada, "discard;", **options))["errors"] == []
    assert error_codes_and_paths(
        (await import_filters(ada, f'{REQUIRE_LINE}fileinto "A";', **options))["errors"]
    ) == [("VALIDATION", ["content"])]
    assert (await list_filters(ada), await load_stream_position(environment, ada.user.id)) == (
        before,
        last,
    )


async def test_import_for_another_user_is_not_found(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await add_mailboxes(ada, "A")
    await add_filter(ada, {}, {"seen": True}, name="hers")
    before, last = await list_filters(ada), await load_stream_position(environment, ada.user.id)
    payload = await import_filters(bob, "discard;", user=user_ref(ada), replace=True)
    assert (payload["filters"], error_codes_and_paths(payload["errors"])) == (
        [],
        [("NOT_FOUND", ["user"])],
    )
    payload = await import_filters(bob, f'{REQUIRE_LINE}fileinto "A";', replace=True)
    assert error_codes_and_paths(payload["errors"]) == [("VALIDATION", ["content"])]
    assert (await import_filters(bob, "discard;", replace=True))["errors"] == []
    assert (await list_filters(ada), await load_stream_position(environment, ada.user.id)) == (
        before,
        last,
    )


async def test_import_by_admin_needs_filters_permission(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    await add_mailboxes(ada, "A")
    await add_filter(ada, {}, {"seen": True}, name="hers")
    with_permission = await make_admin_of_domain(root, AdminPermission.FILTERS, name="boss")
    without_permission = await make_admin_of_domain(root, AdminPermission.IMPERSONATE, name="bare")
    arguments = {"user": user_ref(ada), "replace": True}
    (error,) = (await import_filters(without_permission, "# his\ndiscard;", **arguments))["errors"]
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "FILTERS")
    for client, script in ((with_permission, "# boss's\ndiscard;"), (root, SCRIPT)):
        payload = await import_filters(client, script, **arguments)
        assert payload["errors"] == []
        assert {item["user"]["username"] for item in payload["filters"]} == {"ada"}
    assert [item["name"] for item in (await list_filters(ada))["nodes"]] == [
        "Lists",
        "Big ones",
        "",
    ]
    entries = (await root("{ auditLog { nodes { mutation before after } } }"))["auditLog"]["nodes"]
    import_entries = [item for item in entries if item["mutation"] == "filterImport"]
    assert sorted(item["before"]["name"] for item in import_entries if item["before"]) == [
        "boss's",
        "hers",
    ]
    after = sorted(item["after"]["name"] for item in import_entries if item["after"])
    assert after == ["", "Big ones", "Lists", "boss's"]
