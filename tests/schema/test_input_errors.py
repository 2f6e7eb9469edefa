"""All that is wrong with an input is told at once: each field with the first rule it breaks."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from models.errors import Conflict, ErrorCollector, InvalidInput, MultipleErrors
from models.runtime.environment import Environment
from tests.conftest import Client, make_client
from tests.support.accounts.openpgp_keys import SIGNS_ONLY
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.counter_check import rows
from tests.support.stores.row_counts import USER_TABLES

SHORT = "pa55wd"  # too short for a password
LATE = "2001-01-01T00:00:00Z"


@dataclass(frozen=True)
class Form:
    """A mutation, what of its input is right, and fields that are wrong: value, path and rule."""

    mutation: str
    wrong: dict[str, tuple[Any, str, str]]
    right: dict[str, Any] = field(default_factory=dict)
    within: str = ""  # which member of the input the fields are in
    by: str = "root"

    def input(self, *names: str) -> dict[str, Any]:
        values = {name: self.wrong[name][0] for name in names}
        right = {name: value for name, value in self.right.items() if name not in names}
        return right | ({self.within: values} if self.within else values)

    def told(self, *names: str) -> list[tuple[list[str], str]]:
        """Path and rule of each, in the order of the fields in the schema."""
        found = [self.wrong[name][1:] for name in names]
        before = [self.within] if self.within else []
        return sorted(([*before, *path.split(".")], rule) for path, rule in found)


FACTS = {
    "name": ("a\nb", "name", "pattern"),
    "language": ("klingon", "language", "pattern"),
    "tags": (["ok", ""], "tags", "length"),
    "retention": ("P999Y", "retention", "range"),
    "spamLevel": (101, "spamLevel", "range"),
    "recipients": (-1, "recipients", "range"),
    "receivedMax": (-1, "receivedMax", "range"),
    "fromWhitelist": (["a*b"], "fromWhitelist", "pattern"),
    "metaData": ([1], "metaData", "object"),
    "internalData": ([1], "internalData", "object"),
    "pubKey": (SIGNS_ONLY, "pubKey", "key"),
    "username": ("a..b", "username", "pattern"),
    "password": (SHORT, "password", "min"),
}
FORMS = (
    Form(
        "userCreate",
        {
            **{name: wrong for name, wrong in FACTS.items() if name != "pubKey"},  # is left out
            "address": ("e ve@example.org", "address", "address"),
            "role": ("PUBLIC", "role", "enum"),
            "adminPermissions": (["LOGIN_AS"], "adminPermissions", "role"),
            "administers": ([{"id": "dom_x"}], "administers", "id"),
            "mailboxes": ({"sent": "a//b"}, "mailboxes.sent", "pattern"),
        },
        {"address": "eve@example.org", "password": "correct horse battery"},
    ),
    Form("userUpdate", FACTS, {"users": {"usernames": ["ada"]}}, "set"),
    Form(
        "userUpdate",
        {name: FACTS[name] for name in ("name", "metaData", "password", "pubKey")},
        {"existingPassword": "correct horse battery"},
        "set",
        by="eve",
    ),
    Form(
        "domainCreate",
        {
            "name": ("a..example", "name", "domain"),
            "description": ("x" * 1001, "description", "length"),
            "tags": (["a"] * 101, "tags", "max"),
            "maxUsers": (-1, "maxUsers", "min"),
            "maxAddresses": (-1, "maxAddresses", "min"),
            "maxUserQuota": ("11 GiB", "maxUserQuota", "max"),
            "relayAllRecipients": (True, "relayAllRecipients", "requires"),
            "passwordPolicy": ({"minClasses": 5}, "passwordPolicy.minClasses", "range"),
        },
        {"name": "new.example", "quota": "10 GiB"},
    ),
    Form(
        "domainUpdate",
        {
            "active": (None, "active", "required"),
            "backupMx": (None, "backupMx", "required"),
            "description": ("x" * 1001, "description", "length"),
            "maxUsers": (-1, "maxUsers", "min"),
            "passwordPolicy": ({"minLength": 0}, "passwordPolicy.minLength", "range"),
        },
        {"domains": [{"name": "example.org"}]},
        "set",
    ),
    Form(
        "domainUpdate",  # what is judged beside what is stored
        {
            "maxUserQuota": (5, "maxUserQuota", "max"),
            "relayAllRecipients": (True, "relayAllRecipients", "requires"),
        },
        {"domains": [{"name": "example.org"}]},
        "set",
    ),
    Form(
        "apiKeyCreate",
        {
            "name": (" ", "name", "pattern"),
            "role": ("PUBLIC", "role", "role"),
            "expiresAt": (LATE, "expiresAt", "min"),
            "operations": (["nothing"], "operations", "unknown"),
            "allowedIps": (["10.0.0.0/8"] * 101, "allowedIps", "max"),
            "domains": ([{"id": "dom_x"}], "domains", "id"),
            "user": ({"id": "usr_x"}, "user", "id"),
        },
        {"name": "reports"},
        by="ada",
    ),
    Form(
        "appPasswordCreate",
        {
            "description": (" ", "description", "pattern"),
            "scopes": (["IMAP"], "scopes", "scope"),
            "password": ("a" * 16, "password", "weak"),
            "ttl": ("PT1S", "ttl", "min"),
            "address": ("a da@example.org", "address", "address"),
        },
        {"description": "Phone", "generateMobileconfig": True},
        by="ada",
    ),
    Form(
        "messageSend",
        {
            "to": ([{"address": "x@example.net"}, {"address": "x"}], "to", "address"),
            "cc": ([{"address": "x", "name": "X"}], "cc", "address"),
            "replyTo": ([{"address": "x@example.net", "name": "a\nb"}], "replyTo", "pattern"),
            "subject": ("a\nb", "subject", "pattern"),
            "bcc": ([{"address": "x@example.net", "name": "x" * 256}], "bcc", "max"),
            "headers": ([{"key": "Bcc", "value": "x"}], "headers.0.key", "reserved"),
            "attachments": ([{"content": "?"}], "attachments.0.content", "encoding"),
        },
        {"to": [{"address": "x@example.net"}], "text": "Hi"},
        by="ada",
    ),
)
forms = pytest.mark.parametrize(
    "form", FORMS, ids=lambda form: f"{form.mutation}-{form.by}-{len(form.wrong)}"
)


@pytest.fixture
async def clients(root: Client, ada: Client) -> dict[str, Client]:
    set_options(root.world, imap_server="imap.example.org:993")  # for profiles
    eve = await make_client(ada.world, ada.http, "eve", password="correct horse battery")  # noqa: S106
    return {"root": root, "ada": ada, "eve": eve}


async def refusals(client: Client, form: Form, *names: str, **options: Any) -> list[Any]:
    """Path and rule of what is wrong with these fields, and with no other."""
    kind = form.mutation[0].upper() + form.mutation[1:] + "Input"
    document = f"""mutation ($input: {kind}!) {{ {form.mutation}(input: $input) {{
      errors {{ code message path ... on ValidationError {{ constraint }} }} }} }}"""
    given = form.input(*names) | {"options": options}
    errors = (await client(document, input=given))[form.mutation]["errors"]
    assert {error["code"] for error in errors} == {"VALIDATION"}, errors
    assert SHORT not in str(errors)
    return [(error["path"], error["constraint"]) for error in errors]


async def everything(world: Environment) -> list[Any]:
    tables = (*USER_TABLES, "api_keys", "app_passwords")
    asked = (f"SELECT count(*) FROM {table}" for table in tables)  # noqa: S608 - our own names
    users = await rows(world, "SELECT * FROM users ORDER BY id")
    domains = await rows(world, "SELECT * FROM domains ORDER BY id")
    return [users, domains, *[await rows(world, sql) for sql in asked]]


@forms
async def test_all_that_is_wrong_is_told_at_once(form: Form, clients: dict[str, Client]) -> None:
    client = clients[form.by]
    before = await everything(client.world)
    expected = form.told(*form.wrong)
    assert await refusals(client, form, *form.wrong) == expected
    assert await refusals(client, form, *form.wrong, validateOnly=True) == expected
    assert await refusals(client, form, *form.wrong, idempotencyKey="k") == expected
    assert await everything(client.world) == before


@forms
async def test_what_is_wrong_alone_is_told_alone(form: Form, clients: dict[str, Client]) -> None:
    for name in form.wrong:
        assert await refusals(clients[form.by], form, name) == form.told(name), name


async def test_what_hangs_on_a_field_that_is_wrong_is_not_judged(root: Client) -> None:
    """Else a client would be told of things nobody has said."""
    form = Form("userCreate", {})

    async def told(**given: Any) -> list[Any]:
        return await refusals(root, Form(form.mutation, {}, {"password": SHORT, **given}))

    short = (["password"], "min")
    # a user name that was to be made of the address, and the other way round
    assert await told(address="e ve@example.org") == [(["address"], "address"), short]
    assert await told(username="a..b@example.org") == [(["address"], "address"), short]
    assert await told(username="a..b", emptyAddress=True) == [short, (["username"], "pattern")]
    # names of folders, beside those of a language that is none
    clash = {"sent": "Junk"}
    assert await told(address="e@example.org", mailboxes=clash) == [
        (["mailboxes"], "unique"), short,
    ]  # fmt: skip
    assert await told(address="e@example.org", mailboxes=clash, language="klingon") == [
        (["language"], "pattern"), short,
    ]  # fmt: skip
    assert await told(address="e@example.org", mailboxes={**clash, "trash": "a//b"}) == [
        (["mailboxes", "trash"], "pattern"), short,
    ]  # fmt: skip


async def test_the_password_there_is_is_tried_only_for_a_form_that_is_right(
    clients: dict[str, Client],
) -> None:
    form = Form("userUpdate", FACTS, {}, "set", by="eve")
    required = (["existingPassword"], "required")
    assert await refusals(clients["eve"], form, "password", "name") == [
        required, (["set", "name"], "pattern"), (["set", "password"], "min"),
    ]  # fmt: skip
    guess = Form("userUpdate", FACTS, {"existingPassword": "a guess"}, "set", by="eve")
    assert await refusals(clients["eve"], guess, "name") == [(["set", "name"], "pattern")]
    assert await rows(clients["eve"].world, "SELECT * FROM throttles") == []


async def test_what_a_role_may_not_do_is_told_before_what_is_wrong(
    clients: dict[str, Client],
) -> None:
    document = """mutation ($input: UserUpdateInput!) { userUpdate(input: $input) {
      errors { code path } } }"""
    given = {"set": {"name": "a\nb", "quota": 5}}
    answer = await clients["ada"](document, input=given)
    assert answer["userUpdate"]["errors"] == [{"code": "FORBIDDEN", "path": ["set", "quota"]}]


def wrong(*path: str, rule: str = "pattern") -> InvalidInput:
    return InvalidInput("wrong", constraint=rule, path=path)


def test_the_first_problem_of_a_field_counts_and_one_is_itself() -> None:
    problems = ErrorCollector()
    for refusal in (wrong("b"), wrong("b", rule="max"), MultipleErrors([wrong("b"), wrong("b")])):
        with problems.collecting():
            raise refusal
    with pytest.raises(InvalidInput) as refused:
        problems.raise_collected()
    assert refused.value.constraint == "pattern"


def test_problems_come_in_the_order_of_fields_and_of_positions() -> None:
    problems = ErrorCollector()
    for place in ("b", "a.10.x", "a.9.y", "a"):
        with problems.collecting():
            raise wrong(*place.split("."))
    with pytest.raises(MultipleErrors) as refused:
        problems.raise_collected()
    assert [".".join(one.path) for one in refused.value.all_errors] == ["a", "a.9.y", "a.10.x", "b"]


def test_what_is_no_problem_of_a_field_is_told_at_once() -> None:
    problems = ErrorCollector()
    problems.raise_collected()
    with pytest.raises(Conflict), problems.collecting():
        raise Conflict("taken", path=["name"])
    problems.raise_collected()
