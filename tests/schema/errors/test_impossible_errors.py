"""The static analysis leaves out errors that the arguments, handlers or conditions exclude."""

import pytest

from tests.support.reference.areas import iter_root_fields
from tests.support.reference.errors.error_site import ErrorSite
from tests.support.reference.errors.root_field_errors import errors_of_root_field
from tests.support.reference.errors.sample_module import (
    FindErrors,
    find_errors_in_source,
    rules_and_paths,
)
from tests.support.schema.printed_schema import SDL

find_errors = pytest.fixture(find_errors_in_source)
KINDS = """
from enum import StrEnum

class Kind(StrEnum):
    ADDED = "ADDED"
    RECEIVED = "RECEIVED"
    RELEASED = "RELEASED"

COUNTED_KINDS = frozenset({Kind.RECEIVED})

def refuse(text="Not allowed."):
    raise Conflict(text, path=["name"])
"""


@pytest.mark.parametrize(
    ("check", "call"),
    [
        ("if not ignores_limit: refuse()", "ignores_limit=True"),
        ("if ignores_limit: return\n    refuse()", "ignores_limit=True"),
        ("return not ignores_limit and refuse()", "ignores_limit=True"),
        ("return None if ignores_limit else refuse()", "ignores_limit=True"),
        ("if kind is Kind.RECEIVED: refuse()", "kind=Kind.ADDED"),
        ("if kind in COUNTED_KINDS: refuse()", "kind=Kind.RELEASED"),
        ("if kind is None: refuse()", "kind=Kind.ADDED if text else Kind.RELEASED"),
        ("if replaces_existing is False: refuse()", ""),
    ],
)
def test_branch_that_the_arguments_of_all_calls_exclude(
    find_errors: FindErrors, check: str, call: str
) -> None:
    source = f"""{KINDS}
def store(text, *, ignores_limit=False, kind=Kind.ADDED, replaces_existing=True):
    {check}

def change(text):
    store(text, {call})
"""
    assert find_errors(source) == set()
    other_call = "store(text, ignores_limit=bool(text), kind=text, replaces_existing=text)"
    assert rules_and_paths(find_errors(f"{source}    {other_call}")) == {("CONFLICT", "name")}


@pytest.mark.parametrize(
    "use",
    [
        "log(store)",
        "asyncio.to_thread(store, text, False)",
        "store(text, **options)",
        "store(text, *options)",
        "store(text, ignores_limit=not text)",
        "store(text)",
    ],
)
def test_branch_that_another_use_of_the_function_can_run(find_errors: FindErrors, use: str) -> None:
    errors = find_errors(f"""{KINDS}
def store(text, ignores_limit=False):
    if not ignores_limit:
        refuse()

def change(text, options):
    store(text, ignores_limit=True)
    {use}
""")
    assert rules_and_paths(errors) == {("CONFLICT", "name")}


@pytest.mark.parametrize(
    "statement",
    [
        "ignores_limit = bool(text)",
        "for ignores_limit in text: pass",
        "text = [ignores_limit := False]",
        "def ignores_limit(): pass",
    ],
)
def test_changed_parameter_excludes_no_branch(find_errors: FindErrors, statement: str) -> None:
    errors = find_errors(f"""{KINDS}
def store(text, ignores_limit):
    {statement}
    if not ignores_limit:
        refuse()

def change(text):
    store(text, True)
""")
    assert rules_and_paths(errors) == {("CONFLICT", "name")}


def test_decorated_function_can_have_other_arguments(find_errors: FindErrors) -> None:
    errors = find_errors(f"""{KINDS}
def without_limit(function):
    return lambda text, _: function(text, False)

@without_limit
def store(text, ignores_limit):
    if not ignores_limit:
        refuse()

def change(text):
    store(text, True)
""")
    assert rules_and_paths(errors) == {("CONFLICT", "name")}


def test_constant_passes_through_functions(find_errors: FindErrors) -> None:
    source = f"""{KINDS}
def store(text, ignores_limit):
    if not ignores_limit:
        refuse()

def store_all(texts, ignores_limit=False):
    for text in texts:
        store(text, ignores_limit)

def change(texts):
    store_all(texts, ignores_limit=True)
"""
    assert find_errors(source) == set()
    assert find_errors(f"{source}    store_all(texts)") != set()


def test_constant_excludes_errors_of_a_block(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def validate(text, is_address):
            if is_address:
                validate_address(text)
            validate_name(text)

        def change(text):
            try:
                validate(text, is_address=False)
            except InvalidInput as error:
                raise InvalidInput(error.message, constraint=error.constraint, path=["text"])
    """)
    assert rules_and_paths(errors) == {("MAX", "text")}


def test_message_and_path_are_of_the_same_call(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def refuse(message, path):
            raise Conflict(message, path=path)

        def change(text):
            refuse("The name is taken.", ["name"])
            refuse("The address is taken.", path=["address"])
            with suppress(Conflict):
                refuse("The title is taken.", ["title"])

        from contextlib import suppress
    """)
    assert errors == {
        ErrorSite("CONFLICT", "", "name", "The name is taken."),
        ErrorSite("CONFLICT", "", "address", "The address is taken."),
    }


def test_call_that_drops_the_error_leaves_other_uses(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def refuse(path):
            raise Conflict("Taken.", path=path)

        def change(text):
            try:
                refuse(["name"])
            except Conflict:
                asyncio.to_thread(refuse, text)
    """)
    assert rules_and_paths(errors) == {("CONFLICT", "")}


def test_handlers_of_base_class_and_of_class_drop_an_error(find_errors: FindErrors) -> None:
    errors = find_errors("""
        from mail.recipients.recipient_routes import MailLoop

        def require_no_loop():
            raise MailLoop("The message passed too many servers.")

        def change(text):
            try:
                require_no_loop()
            except Conflict:
                log(text)
            try:
                require_no_loop()
            except MailLoop as loop:
                log("again" if isinstance(loop, Conflict) else loop.message)
    """)
    assert errors == set()


def test_paths_of_extra_arguments_loops_and_results(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def path_of_list(path, name):
            if name:
                return [path, name]
            return [path]

        def refuse(text, *path):
            raise Conflict(text, path=path)

        def change(text):
            refuse("Taken.", "set", "name")
            for name in ("ids", "tags"):
                raise NotFound(text, path=["users", name])
            raise LimitReached("Too many.", limit=1, used=2, path=path_of_list("select", "ids"))
    """)
    assert rules_and_paths(errors) == {
        ("CONFLICT", "set.name"),
        ("NOT_FOUND", "users.ids"),
        ("NOT_FOUND", "users.tags"),
        ("LIMIT_REACHED", "select.ids"),
        ("LIMIT_REACHED", "select"),
    }


@pytest.mark.parametrize(
    ("mutation", "code", "text"),
    [
        ("messageSend", "QUOTA_EXCEEDED", ""),
        ("messageSend", "CONFLICT", ""),
        ("messageSend", "RATE_LIMITED", "The account receives mail too quickly."),
        ("draftSend", "QUOTA_EXCEEDED", ""),
        ("draftSend", "CONFLICT", "The message is spam."),
        ("messageRedirect", "QUOTA_EXCEEDED", ""),
        ("messageRedirect", "CONFLICT", "The message contains a virus."),
        ("settingDelete", "LIMIT_REACHED", ""),
        ("domainCreate", "FORBIDDEN_OPERATION", ""),
        ("dkimKeyRotate", "CONFLICT", "*name* already has this DKIM key."),
        ("quarantineRelease", "CONFLICT", ""),
        ("undo", "RATE_LIMITED", ""),
        ("userPasswordReset", "LIMIT_REACHED", ""),
        ("userPasswordReset", "FORBIDDEN", "You don't administer this domain."),
        ("userCreate", "LIMIT_REACHED", "The message has at most *most* bytes."),
        ("userRoleSet", "VALIDATION", "From 1 to *limit* domains are required."),
        ("transportDelete", "VALIDATION", "Not a domain name."),
        ("relayHostCreate", "VALIDATION", "The password is required, since another server would "
         "receive the stored one."),
        ("auditLog", "FORBIDDEN", ""),
    ],
)  # fmt: skip
def test_root_field_has_no_error_that_its_code_excludes(
    mutation: str, code: str, text: str
) -> None:
    (root_field,) = [field for field in iter_root_fields(SDL) if field.name == mutation]
    found = [one for one in errors_of_root_field(root_field) if one.code == code]
    assert not [error for error in found if not text or error.condition == text]
