"""Validation reports all invalid fields of an input at once, each with the first rule it breaks."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from models.errors import Conflict, ErrorCollector, InvalidInput, MultipleErrors
from models.runtime.environment import Environment
from models.validation_constraints import ValidationConstraint
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.openpgp_keys import SIGN_ONLY_KEY
from tests.support.operations.quarantine_operations import set_options
from tests.support.reference.errors.documented_errors import assert_errors_are_documented
from tests.support.stores.counter_check import select_rows
from tests.support.stores.row_counts import USER_TABLES

TOO_SHORT = "pa55wd"  # a password below the minimum length
PAST_TIME = "2001-01-01T00:00:00Z"


@dataclass(frozen=True)
class InputCase:
    """A mutation with valid fields, and invalid fields with value, error path and rule."""

    mutation: str
    invalid_fields: dict[str, tuple[Any, str, str]]
    valid_fields: dict[str, Any] = field(default_factory=dict)
    member: str = ""  # the member of the input that has the fields
    by: str = "root"

    def input(self, *names: str) -> dict[str, Any]:
        values = {name: self.invalid_fields[name][0] for name in names}
        valid_fields = {
            name: value for name, value in self.valid_fields.items() if name not in names
        }
        return valid_fields | ({self.member: values} if self.member else values)

    def expected_errors(self, *names: str) -> list[tuple[list[str], str]]:
        """Return path and rule of each field, in the order of the schema."""
        expected = [self.invalid_fields[name][1:] for name in names]
        prefix = [self.member] if self.member else []
        return sorted(([*prefix, *path.split(".")], rule) for path, rule in expected)


USER_FIELDS = {
    "name": ("a\nb", "name", "PATTERN"),
    "language": ("klingon", "language", "PATTERN"),
    "tags": (["ok", ""], "tags.1", "LENGTH"),
    "retention": ("P999Y", "retention", "RANGE"),
    "spam": ({"level": 101}, "spam.level", "RANGE"),
    "limits": ({"receivedPerHour": 0}, "limits.receivedPerHour", "RANGE"),
    "allowedSenders": (["a*b"], "allowedSenders.0", "PATTERN"),
    "metadata": ([1], "metadata", "OBJECT"),
    "privateMetadata": ([1], "privateMetadata", "OBJECT"),
    "openpgpPublicKey": (SIGN_ONLY_KEY, "openpgpPublicKey", "KEY"),
    "username": ("a..b", "username", "PATTERN"),
    "password": (TOO_SHORT, "password", "MIN"),
}
INPUT_CASES = (
    InputCase(
        "userCreate",
        {
            # the case omits it
            **{name: field_ for name, field_ in USER_FIELDS.items() if name != "openpgpPublicKey"},
            "address": ("e ve@example.org", "address", "ADDRESS"),
            "role": ("PUBLIC", "role", "ENUM"),
            "adminPermissions": (["IMPERSONATE"], "adminPermissions", "ROLE"),
            "administers": ([{"id": "dom_x"}], "administers.0", "ID"),
            "mailboxes": ({"sent": "a//b"}, "mailboxes.sent", "PATTERN"),
        },
        {"address": "eve@example.org", "password": "correct horse battery"},
    ),
    InputCase("userUpdate", USER_FIELDS, {"users": {"usernames": ["ada"]}}, "set"),
    InputCase(
        "userUpdate",
        {name: USER_FIELDS[name] for name in ("name", "metadata", "password", "openpgpPublicKey")},
        {"existingPassword": "correct horse battery"},
        "set",
        by="eve",
    ),
    InputCase(
        "domainCreate",
        {
            "name": ("a..example", "name", "DOMAIN"),
            "description": ("x" * 1001, "description", "LENGTH"),
            "tags": (["a"] * 101, "tags", "MAX"),
            "maxUsers": (0, "maxUsers", "RANGE"),
            "maxAddresses": (0, "maxAddresses", "RANGE"),
            "maxUserQuota": ("11 GiB", "maxUserQuota", "MAX"),
            "relayAllRecipients": (True, "relayAllRecipients", "REQUIRES"),
            "passwordPolicy": ({"minClasses": 5}, "passwordPolicy.minClasses", "RANGE"),
        },
        {"name": "new.example", "quota": "10 GiB"},
    ),
    InputCase(
        "domainUpdate",
        {
            "active": (None, "active", "REQUIRED"),
            "backupMx": (None, "backupMx", "REQUIRED"),
            "description": ("x" * 1001, "description", "LENGTH"),
            "maxUsers": (0, "maxUsers", "RANGE"),
            "passwordPolicy": ({"minLength": 0}, "passwordPolicy.minLength", "RANGE"),
        },
        {"domains": [{"name": "example.org"}]},
        "set",
    ),
    InputCase(
        "domainUpdate",  # fields that are validated together with stored values
        {
            "maxUserQuota": (5, "maxUserQuota", "MAX"),
            "relayAllRecipients": (True, "relayAllRecipients", "REQUIRES"),
        },
        {"domains": [{"name": "example.org"}]},
        "set",
    ),
    InputCase(
        "apiKeyCreate",
        {
            "name": (" ", "name", "PATTERN"),
            "role": ("PUBLIC", "role", "ROLE"),
            "expiresAt": (PAST_TIME, "expiresAt", "MIN"),
            "operations": (["nothing"], "operations.0", "UNKNOWN"),
            "allowedIps": (["10.0.0.0/8"] * 101, "allowedIps", "MAX"),
            "domains": ([{"id": "dom_x"}], "domains.0", "ID"),
            "user": ({"id": "usr_x"}, "user", "ID"),
        },
        {"name": "reports"},
        by="ada",
    ),
    InputCase(
        "appPasswordCreate",
        {
            "description": (" ", "description", "PATTERN"),
            "scopes": (["IMAP"], "scopes", "SCOPE"),
            "password": ("a" * 16, "password", "WEAK"),
            "ttl": ("PT1S", "ttl", "MIN"),
            "address": ("a da@example.org", "address", "ADDRESS"),
        },
        {"description": "Phone", "generateMobileconfig": True},
        by="ada",
    ),
    InputCase(
        "messageSend",
        {
            "to": ([{"address": "x@example.net"}, {"address": "x"}], "to.1", "ADDRESS"),
            "cc": ([{"address": "x", "name": "X"}], "cc.0", "ADDRESS"),
            "replyTo": ([{"address": "x@example.net", "name": "a\nb"}], "replyTo", "PATTERN"),
            "subject": ("a\nb", "subject", "PATTERN"),
            "bcc": ([{"address": "x@example.net", "name": "x" * 256}], "bcc", "MAX"),
            "headers": ([{"name": "Bcc", "value": "x"}], "headers.0.name", "RESERVED"),
            "attachments": ([{"content": "?"}], "attachments.0.content", "ENCODING"),
        },
        {"to": [{"address": "x@example.net"}], "text": "Hi"},
        by="ada",
    ),
)
each_input_case = pytest.mark.parametrize(
    "case", INPUT_CASES, ids=lambda case: f"{case.mutation}-{case.by}-{len(case.invalid_fields)}"
)


@pytest.fixture
async def clients(root: GraphQLClient, ada: GraphQLClient) -> dict[str, GraphQLClient]:
    set_options(root.environment, profile_imap_server="imap.example.org:993")  # for profiles
    eve = await make_client(ada.environment, ada.http, "eve", password="correct horse battery")  # noqa: S106
    return {"root": root, "ada": ada, "eve": eve}


async def load_errors(
    client: GraphQLClient, case: InputCase, *names: str, **options: Any
) -> list[Any]:
    """Return path and rule of the errors of these fields. All other fields are valid."""
    kind = case.mutation[0].upper() + case.mutation[1:] + "Input"
    document = f"""mutation ($input: {kind}!) {{ {case.mutation}(input: $input) {{
      errors {{ code message path ... on ValidationError {{ constraint }} }} }} }}"""
    mutation_input = case.input(*names) | {"options": options}
    data = await client(document, input=mutation_input)
    errors = assert_errors_are_documented(document, {"data": data})["data"][case.mutation]["errors"]
    assert {error["code"] for error in errors} == {"VALIDATION"}, errors
    assert TOO_SHORT not in str(errors)
    return [(error["path"], error["constraint"]) for error in errors]


async def load_all_rows(environment: Environment) -> list[Any]:
    tables = (*USER_TABLES, "api_keys", "application_passwords")
    counts = (f"SELECT count(*) FROM {table}" for table in tables)  # noqa: S608 - our own names
    users = await select_rows(environment, "SELECT * FROM users ORDER BY id")
    domains = await select_rows(environment, "SELECT * FROM domains ORDER BY id")
    return [users, domains, *[await select_rows(environment, sql) for sql in counts]]


@each_input_case
async def test_all_invalid_fields_are_reported_at_once(
    case: InputCase, clients: dict[str, GraphQLClient]
) -> None:
    client = clients[case.by]
    before = await load_all_rows(client.environment)
    expected = case.expected_errors(*case.invalid_fields)
    assert await load_errors(client, case, *case.invalid_fields) == expected
    assert await load_errors(client, case, *case.invalid_fields, validateOnly=True) == expected
    assert await load_errors(client, case, *case.invalid_fields, idempotencyKey="k") == expected
    assert await load_all_rows(client.environment) == before


@each_input_case
async def test_single_invalid_field_is_reported_alone(
    case: InputCase, clients: dict[str, GraphQLClient]
) -> None:
    for name in case.invalid_fields:
        assert await load_errors(clients[case.by], case, name) == case.expected_errors(name), name


async def test_fields_that_depend_on_invalid_field_are_not_checked(root: GraphQLClient) -> None:
    """Otherwise clients would get errors about values that they did not send."""
    case = InputCase("userCreate", {})

    async def load_create_errors(**arguments: Any) -> list[Any]:
        return await load_errors(
            root, InputCase(case.mutation, {}, {"password": TOO_SHORT, **arguments})
        )

    password_error = (["password"], "MIN")
    # a username that is derived from the address, and an address from the username
    assert await load_create_errors(address="e ve@example.org") == [
        (["address"], "ADDRESS"),
        password_error,
    ]
    assert await load_create_errors(username="a..b@example.org") == [
        (["address"], "ADDRESS"),
        password_error,
    ]
    assert await load_create_errors(username="a..b", emptyAddress=True) == [
        password_error,
        (["username"], "PATTERN"),
    ]
    # mailbox names together with those of an invalid language
    duplicates = {"sent": "Junk"}
    assert await load_create_errors(address="e@example.org", mailboxes=duplicates) == [
        (["mailboxes"], "UNIQUE"), password_error,
    ]  # fmt: skip
    assert await load_create_errors(
        address="e@example.org", mailboxes=duplicates, language="klingon"
    ) == [(["language"], "PATTERN"), password_error]
    assert await load_create_errors(
        address="e@example.org", mailboxes={**duplicates, "trash": "a//b"}
    ) == [(["mailboxes", "trash"], "PATTERN"), password_error]


async def test_existing_password_is_checked_only_if_input_is_valid(
    clients: dict[str, GraphQLClient],
) -> None:
    case = InputCase("userUpdate", USER_FIELDS, {}, "set", by="eve")
    required = (["existingPassword"], "REQUIRED")
    assert await load_errors(clients["eve"], case, "password", "name") == [
        required, (["set", "name"], "PATTERN"), (["set", "password"], "MIN"),
    ]  # fmt: skip
    wrong_password_case = InputCase(
        "userUpdate", USER_FIELDS, {"existingPassword": "a guess"}, "set", by="eve"
    )
    assert await load_errors(clients["eve"], wrong_password_case, "name") == [
        (["set", "name"], "PATTERN")
    ]
    assert await select_rows(clients["eve"].environment, "SELECT * FROM throttles") == []


async def test_permission_error_precedes_validation_errors(
    clients: dict[str, GraphQLClient],
) -> None:
    document = """mutation ($input: UserUpdateInput!) { userUpdate(input: $input) {
      errors { code path } } }"""
    mutation_input = {"set": {"name": "a\nb", "quota": 5}}
    data = await clients["ada"](document, input=mutation_input)
    assert data["userUpdate"]["errors"] == [{"code": "FORBIDDEN", "path": ["set", "quota"]}]


def invalid_input(
    *path: str, rule: ValidationConstraint = ValidationConstraint.PATTERN
) -> InvalidInput:
    return InvalidInput("wrong", constraint=rule, path=path)


def test_first_error_of_a_field_is_raised() -> None:
    problems = ErrorCollector()
    for refusal in (
        invalid_input("b"),
        invalid_input("b", rule=ValidationConstraint.MAX),
        MultipleErrors([invalid_input("b"), invalid_input("b")]),
    ):
        with problems.collecting():
            raise refusal
    with pytest.raises(InvalidInput) as refused:
        problems.raise_collected()
    assert refused.value.constraint == "PATTERN"


def test_errors_are_sorted_by_field_and_index() -> None:
    problems = ErrorCollector()
    for path in ("b", "a.10.x", "a.9.y", "a"):
        with problems.collecting():
            raise invalid_input(*path.split("."))
    with pytest.raises(MultipleErrors) as refused:
        problems.raise_collected()
    assert [".".join(error.path) for error in refused.value.all_errors] == [
        "a",
        "a.9.y",
        "a.10.x",
        "b",
    ]


def test_other_errors_are_raised_immediately() -> None:
    problems = ErrorCollector()
    problems.raise_collected()
    with pytest.raises(Conflict), problems.collecting():
        raise Conflict("taken", path=["name"])
    problems.raise_collected()


@pytest.mark.parametrize(
    ("mutation", "mutation_input", "path", "allowed"),
    [
        ("userCreate", {"address": "e@example.org", "role": "PUBLIC"}, ["role"],
         ["USER", "DOMAIN_ADMIN", "ADMIN", "ROOT"]),
        ("settingSet", {"key": "dmarc.onFailure", "value": "x"}, ["value"],
         ["ignore", "junk", "reject"]),
        ("userCreate", {"address": "e@example.org", "spam": {"level": 101}},
         ["spam", "level"], None),
    ],
)  # fmt: skip
async def test_error_of_closed_value_names_allowed_values(
    root: GraphQLClient,
    mutation: str,
    mutation_input: dict[str, Any],
    path: list[str],
    allowed: list[str] | None,
) -> None:
    kind = mutation[0].upper() + mutation[1:] + "Input"
    document = f"""mutation ($input: {kind}!) {{ {mutation}(input: $input) {{
      errors {{ path ... on ValidationError {{ allowedValues }} }} }} }}"""
    errors = (await root(document, input=mutation_input))[mutation]["errors"]
    (error,) = [error for error in errors if error["path"] == path]
    assert sorted(error["allowedValues"] or ["-"]) == sorted(allowed or ["-"])
