"""Scripts that become filters of an account: all or none, and only for whom they are."""

from typing import Any

import pytest

from graph.types import global_ids
from mail.sieve import limits
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import Client, raw_message
from tests.support.accounts.user_operations import chief
from tests.support.operations.filter_operations import (
    error_codes_and_paths,
    imported,
    listed,
    looked_at,
    made,
    user_ref,
)
from tests.support.operations.mailbox_operations import add_mailboxes
from tests.support.stores.counter_check import journal, reached

HEAD = 'require ["fileinto", "imap4flags", "copy", "vacation", "regex", "special-use"];\n'
PLAIN = '"comparator-vnd.merganser.plain"'
SCRIPT = f"""{HEAD}
# rule:[Lists]
if header :contains "list-id" "news" {{ addflag "news"; fileinto "A"; stop; }}
# Big ones
if size :over 1M {{ redirect :copy "eve@example.net"; }}
else {{ fileinto :specialuse "\\\\Sent" "B"; }}
"""


def names(payload: Any) -> list[tuple[str, int]]:
    return [(one["name"], one["order"]) for one in payload["filters"]]


async def test_a_script_becomes_filters_behind_the_others(ada: Client, world: Environment) -> None:
    await add_mailboxes(ada, "A")
    await made(ada, {}, {"seen": True}, name="mine", order=4)
    last = await reached(world, ada.user.id)
    payload = await imported(ada, SCRIPT)
    assert (payload["errors"], payload["warnings"]) == ([], [])
    assert names(payload) == [("Lists", 5), ("Big ones", 6), ("", 7)]
    first, second, third = payload["filters"]
    assert (first["query"]["listId"], first["active"], first["matchCount"]) == ("news", True, 0)
    assert first["action"]["mailbox"] == {"path": "A"}
    assert (first["action"]["labels"], first["action"]["stop"]) == (["news"], True)
    assert (second["query"]["size"], second["action"]["targets"]) == (1 << 20, ["eve@example.net"])
    assert third["action"]["mailbox"] == {"path": "Sent"}
    assert [one["size"] for one in third["query"]["not"]] == [1 << 20]
    assert [one["name"] for one in (await listed(ada))["nodes"]] == [
        "mine",
        "Lists",
        "Big ones",
        "",
    ]
    (changes,) = [
        keys
        for kind, keys in await journal(world, ada.user.id, last)
        if kind is ChangeKind.FILTER_CHANGED
    ]
    assert changes == [global_ids.decode("Filter", one["id"]) for one in payload["filters"]]
    document = (
        '{ viewer { user { authLog(filter: {action: "filter forward"}) { nodes { detail } } } } }'
    )
    (event,) = (await ada(document))["viewer"]["user"]["authLog"]["nodes"]
    assert event["detail"]["target"] == "eve@example.net"


async def test_they_act_on_mail(ada: Client) -> None:
    await add_mailboxes(ada, "A")
    script = f'{HEAD}if header :is "subject" "Hello" {{ addflag "x"; fileinto "A"; }}'
    payload = await imported(ada, script)
    assert payload["errors"] == []
    (found,) = await looked_at(ada, raw=raw_message("Hello").decode())
    assert (found["matches"], found["actions"]) == (True, ["Move to: A", "Add labels: x"])
    (found,) = await looked_at(ada, raw=raw_message("Hello you").decode())
    assert not found["matches"]


async def test_they_stand_in_the_place_of_all_others(ada: Client) -> None:
    await add_mailboxes(ada, "A")
    await made(ada, {}, {"seen": True}, name="mine", order=4)
    payload = await imported(ada, SCRIPT, replace=True)
    assert names(payload) == [("Lists", 0), ("Big ones", 1), ("", 2)]
    assert (await listed(ada))["totalCount"] == 3
    script = "\n".join(
        line
        for one in payload["filters"]
        for line in (f"# {one['name']}", *one["sieve"].splitlines())
        if not line.startswith("require")
    )
    again = await imported(ada, f"{HEAD[:-3]}, {PLAIN}];\n{script}", replace=True)
    assert (again["errors"], again["warnings"]) == ([], [])
    same = ("name", "query", "action", "order")
    assert [{name: one[name] for name in same} for one in again["filters"]] == [
        {name: one[name] for name in same} for one in payload["filters"]
    ]
    none = await imported(ada, "", replace=True)
    assert (none["filters"], none["errors"]) == ([], [])
    assert (await listed(ada))["totalCount"] == 0


async def test_where_filters_differ_is_a_warning(ada: Client) -> None:
    flags = 'if size :over 5 { addflag "x"; }\nsetflag "y";\nstop;\nkeep;'
    payload = await imported(ada, f'require "imap4flags";\n{flags}')
    assert payload["errors"] == []
    assert [(one["code"], one["path"]) for one in payload["warnings"]] == [
        ("FILTER_DIFFERS", ["content"])
    ] * 2
    assert [one["message"].partition(": ")[0] for one in payload["warnings"]] == [
        "line 3, column 1", "line 5, column 1"
    ]  # fmt: skip


REFUSED = [
    ('if envelope "from" "a" { keep; stop; }', "unsupported", "line 2, column 4: filters have no"),
    ('fileinto "Nowhere";', "unknown", 'line 2, column 1: there is no folder "Nowhere"'),
    ('fileinto :create "Nowhere";', "unknown", "line 2, column 1: there is no folder"),
    ('if header :contains "x" " " { stop; }', "length", "line 2, column 31: "),
    (f'if header :contains "x" "{"y" * 256}" {{ stop; }}', "length", "line 2, column 286: "),
    (f'if header "x" "{"y" * 199}" {{ stop; }}', "pattern", "line 2, column 219: "),
    ('if size :over 1 { redirect "ada@example.org"; }', "self", "line 2, column 19: a filter does"),
    ('addflag "\\\\Deleted";', "pattern", "line 2, column 1: "),
    ('vacation " ";', "required", "line 2, column 1: there is nothing to answer"),
    ("redirect :copy \"a@b.example\";" + ''.join(
        f' redirect :copy "{one}@b.example";' for one in "bcde"), "max", "line 2, column 1: "),
    ("if not not not not not not not size :over 1 { stop; }", "depth", "line 2, column 47: "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "constraint", "message"), REFUSED)
async def test_what_no_filter_is_takes_all_of_it_back(
    ada: Client, world: Environment, text: str, constraint: str, message: str
) -> None:
    await made(ada, {}, {"seen": True}, name="mine")
    before, last = await listed(ada), await reached(world, ada.user.id)
    head = HEAD[:-3].strip() + ', "envelope", "mailbox"];'
    script = f"{head}\n{text}\nif size :over 9 {{ discard; }}"
    payload = await imported(ada, script, replace=True)
    assert payload["filters"] == []
    (error,) = payload["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["content"])
    assert error["constraint"] == constraint
    assert error["message"].startswith(message)
    assert await listed(ada) == before
    assert await reached(world, ada.user.id) == last


async def test_all_mistakes_are_told_at_once(ada: Client) -> None:
    payload = await imported(ada, f'{HEAD}fileinto "A";\nfileinto "A"; fileinto "B";')
    assert [one["message"] for one in payload["errors"]] == [
        'line 2, column 1: there is no folder "A"', 'line 3, column 15: there is no folder "B"'
    ]  # fmt: skip
    lines = 'if size :over 1 { addflag "\\\\Draft"; stop; }\n' * 30
    many = await imported(ada, f"{HEAD}{lines}")
    assert len(many["errors"]) == limits.MAX_PROBLEMS


async def test_what_does_not_compile_is_told_as_for_scripts(ada: Client) -> None:
    payload = await imported(ada, 'if true {\n  fileinto "A";\n  nothing;\n}')
    found = [(one["code"], one["line"], one["column"]) for one in payload["errors"]]
    assert found == [("SIEVE_COMPILE", 2, 3), ("SIEVE_COMPILE", 3, 3)]
    long = await imported(ada, f"# {'x' * limits.MAX_SCRIPT_BYTES}")
    assert [(one["constraint"], one["path"]) for one in long["errors"]] == [("max", ["content"])]


async def test_there_are_only_so_many(ada: Client) -> None:
    rule = "if size :over 9 { discard; stop; }\n"
    payload = await imported(ada, rule * 401)
    (error,) = payload["errors"]
    assert error["message"] == "line 401, column 19: a script becomes at most 400 filters"
    assert (await imported(ada, rule * 400))["errors"] == []
    (error,) = (await imported(ada, rule))["errors"]
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 400, 400)
    assert error["path"] == ["content"]
    payload = await imported(ada, rule * 2, replace=True)
    assert (payload["errors"], (await listed(ada))["totalCount"]) == ([], 2)


async def test_to_try_it_changes_nothing(ada: Client, world: Environment) -> None:
    await made(ada, {}, {"seen": True}, name="mine")
    before, last = await listed(ada), await reached(world, ada.user.id)
    options = {"options": {"validateOnly": True}, "replace": True}
    assert (await imported(ada, "discard;", **options))["errors"] == []
    assert error_codes_and_paths(
        (await imported(ada, f'{HEAD}fileinto "A";', **options))["errors"]
    ) == [("VALIDATION", ["content"])]
    assert (await listed(ada), await reached(world, ada.user.id)) == (before, last)


async def test_others_see_and_change_nothing(ada: Client, bob: Client, world: Environment) -> None:
    await add_mailboxes(ada, "A")
    await made(ada, {}, {"seen": True}, name="hers")
    before, last = await listed(ada), await reached(world, ada.user.id)
    payload = await imported(bob, "discard;", user=user_ref(ada), replace=True)
    assert (payload["filters"], error_codes_and_paths(payload["errors"])) == (
        [],
        [("NOT_FOUND", ["user"])],
    )
    payload = await imported(bob, f'{HEAD}fileinto "A";', replace=True)
    assert error_codes_and_paths(payload["errors"]) == [("VALIDATION", ["content"])]
    assert (await imported(bob, "discard;", replace=True))["errors"] == []
    assert (await listed(ada), await reached(world, ada.user.id)) == (before, last)


async def test_administrators_need_filters(ada: Client, root: Client) -> None:
    await add_mailboxes(ada, "A")
    await made(ada, {}, {"seen": True}, name="hers")
    boss = await chief(root, AdminPermission.FILTERS, name="boss")
    bare = await chief(root, AdminPermission.LOGIN_AS, name="bare")
    given = {"user": user_ref(ada), "replace": True}
    (error,) = (await imported(bare, "# his\ndiscard;", **given))["errors"]
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "FILTERS")
    for client, script in ((boss, "# boss's\ndiscard;"), (root, SCRIPT)):
        payload = await imported(client, script, **given)
        assert payload["errors"] == []
        assert {one["user"]["username"] for one in payload["filters"]} == {"ada"}
    assert [one["name"] for one in (await listed(ada))["nodes"]] == ["Lists", "Big ones", ""]
    entries = (await root("{ adminLog { nodes { mutation before after } } }"))["adminLog"]["nodes"]
    log = [one for one in entries if one["mutation"] == "filterImport"]
    assert sorted(one["before"]["name"] for one in log if one["before"]) == ["boss's", "hers"]
    after = sorted(one["after"]["name"] for one in log if one["after"])
    assert after == ["", "Big ones", "Lists", "boss's"]
