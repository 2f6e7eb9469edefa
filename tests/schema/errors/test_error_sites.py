"""The static analysis that finds the errors of root fields, on small modules and mutations."""

import pytest

from tests.support.reference.areas import iter_root_fields
from tests.support.reference.errors.error_section import mutation_error_table
from tests.support.reference.errors.error_site import ErrorSite
from tests.support.reference.errors.root_field_errors import errors_of_root_field
from tests.support.reference.errors.sample_module import (
    FindErrors,
    find_errors_in_source,
    rules_and_paths,
)
from tests.support.schema.printed_schema import SDL

find_errors = pytest.fixture(find_errors_in_source)


def test_rule_of_conditional_expression(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def change(limit):
            raise InvalidInput(
                "Out of range.",
                constraint=ValidationConstraint.MIN if limit < 1 else ValidationConstraint.MAX,
                path=["limit"],
            )
    """)
    assert rules_and_paths(errors) == {("MIN", "limit"), ("MAX", "limit")}


def test_rule_of_variable(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def change(number):
            rule = ValidationConstraint.MAX if number > 0 else ValidationConstraint.MIN
            raise InvalidInput("Out of range.", constraint=rule, path=["delta"])
    """)
    assert rules_and_paths(errors) == {("MIN", "delta"), ("MAX", "delta")}


def test_rule_of_parameter_and_of_constant(find_errors: FindErrors) -> None:
    errors = find_errors("""
        RULE = ValidationConstraint.PEM

        def refusal(text, constraint):
            return InvalidInput(text, constraint=constraint, path=["content"])

        def change(text):
            if text:
                raise refusal("Unknown.", ValidationConstraint.UNKNOWN)
            raise InvalidInput("No certificate.", constraint=RULE, path=["cert"])
    """)
    assert rules_and_paths(errors) == {("UNKNOWN", "content"), ("PEM", "cert")}


def test_error_whose_handler_only_describes_it_is_dropped(find_errors: FindErrors) -> None:
    errors = find_errors("""
        from mail.recipients.recipient_routes import MailLoop
        def refuse():
            raise MailLoop("The message passed too many servers.")
        def change(text):
            try:
                validate_address(text)
            except InvalidInput as error:
                raise NotFound(f"None: {error.message}", path=["user"]) from error
            try:
                refuse()
            except Conflict as error:
                log(str(error))
    """)
    assert rules_and_paths(errors) == {("NOT_FOUND", "user")}


@pytest.mark.parametrize("statement", ["failures.append(error)", "report(error.code)", "raise"])
def test_error_whose_handler_passes_it_on_is_found(find_errors: FindErrors, statement: str) -> None:
    errors = find_errors(f"""
        def change(text):
            try:
                validate_address(text)
            except Exception as error:
                {statement}
    """)
    assert rules_and_paths(errors) == {("ADDRESS", "address")}


def test_path_of_constant_and_of_list_position(find_errors: FindErrors) -> None:
    errors = find_errors("""
        PATCH_PATH = ("set",)
        NAME_PATH = (*PATCH_PATH, "name")

        def refuse(path):
            raise Conflict("Not allowed.", path=path)

        def change(texts):
            refuse(NAME_PATH)
            for index, text in enumerate(texts):
                refuse(["entries", str(index), "name"])
    """)
    assert rules_and_paths(errors) == {
        ("CONFLICT", "set.name"),
        ("CONFLICT", "entries.0.name"),
    }
    (row,) = [row for row in mutation_error_table(errors, "") if "Not allowed" in row]
    assert "`entries.n.name`, `set.name`" in row or "`set.name`, `entries.n.name`" in row


def test_rule_of_error_that_is_raised_again(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def change(text):
            validate_name(text)
            try:
                validate_address(text)
            except InvalidInput as error:
                path = ["destination"]
                raise InvalidInput(error.message, constraint=error.constraint, path=path) from None
    """)
    assert ErrorSite("VALIDATION", "ADDRESS", "destination", "Not an address.") in errors
    assert rules_and_paths(errors) == {
        ("ADDRESS", "destination"),
        ("MAX", "name"),
    }


def test_rule_and_path_of_caught_error_pass_through_variables(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def change(text):
            try:
                validate_address(text)
            except InvalidInput as error:
                constraint = error.constraint
                text = f"The source: {error.message}"
                raise InvalidInput(text, constraint=constraint, path=["source", *error.path])
    """)
    assert (
        ErrorSite("VALIDATION", "ADDRESS", "source.address", "The source: Not an address.")
        in errors
    )


def test_function_that_runs_in_a_thread_is_in_the_block(find_errors: FindErrors) -> None:
    errors = find_errors("""
        async def change(text):
            try:
                await asyncio.to_thread(validate_address, text)
            except InvalidInput as error:
                raise InvalidInput(error.message, constraint=error.constraint, path=["message"])
    """)
    assert ("ADDRESS", "message") in rules_and_paths(errors)


def test_context_manager_gives_errors_of_its_blocks_a_path(find_errors: FindErrors) -> None:
    errors = find_errors("""
        @contextmanager
        def errors_with_path(path):
            try:
                yield
            except InvalidInput as error:
                raise InvalidInput(error.message, constraint=error.constraint, path=path) from None

        def change(text):
            with errors_with_path(["set", "target"]):
                validate_address(text)
            with errors_with_path(["set", "title"]):
                validate_name(text)
    """)
    assert rules_and_paths(errors) == {
        ("ADDRESS", "address"),
        ("ADDRESS", "set.target"),
        ("MAX", "name"),
        ("MAX", "set.title"),
    }


def test_rules_of_collected_errors_pass_through_functions(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def refusal(text, constraint):
            return InvalidInput(text.strip(), constraint=constraint, path=["content"])

        def with_position(error):
            unknown = ValidationConstraint.UNKNOWN
            constraint = error.constraint if isinstance(error, InvalidInput) else unknown
            return refusal(error.message, constraint)

        def change(text):
            problems = []
            try:
                validate_address(text)
            except (InvalidInput, NotFound, MultipleErrors) as refused:
                problems += [with_position(error) for error in refused.all_errors]
            raise MultipleErrors(problems)
    """)
    assert rules_and_paths(errors) == {
        ("ADDRESS", "address"),
        ("ADDRESS", "content"),
        ("UNKNOWN", "content"),
    }
    assert ErrorSite("VALIDATION", "ADDRESS", "content", "Not an address.") in errors


def test_copied_error_has_the_new_path_unless_a_condition_excludes_it(
    find_errors: FindErrors,
) -> None:
    errors = find_errors("""
        INPUT_PATH = ["message"]
        _FIELDS = frozenset({"name"})

        def error_in_input(error):
            if error.path and error.path[0] in _FIELDS:
                return error
            return error.copy_with_path(INPUT_PATH)

        @contextmanager
        def paths_in_input():
            try:
                yield
            except RequestError as error:
                raise MultipleErrors([error_in_input(one) for one in error.all_errors]) from error

        def change(text):
            with paths_in_input():
                validate_address(text)
                validate_name(text)
                raise Conflict("Not a draft.", path=["draft"])
    """)
    assert rules_and_paths(errors) == {
        ("ADDRESS", "address"),
        ("ADDRESS", "message"),
        ("CONFLICT", "draft"),
        ("CONFLICT", "message"),
        ("MAX", "name"),
    }


def test_changed_path_of_error_depends_on_its_path(find_errors: FindErrors) -> None:
    errors = find_errors("""
        ENTRY_FIELDS = (["name"], ["values"])

        def move_into_entry(error, index):
            inner_path = error.path if error.path[:1] in ENTRY_FIELDS else ["values"]
            error.path = ["entries", str(index), *inner_path]
            return error

        def change(texts):
            for index, text in enumerate(texts):
                try:
                    validate_address(text)
                    validate_name(text)
                except InvalidInput as error:
                    raise move_into_entry(error, index)
    """)
    assert rules_and_paths(errors) == {
        ("ADDRESS", "address"),
        ("ADDRESS", "entries.0.values"),
        ("MAX", "entries.0.name"),
        ("MAX", "name"),
    }


def test_path_that_a_function_computes_from_the_path(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def path_in_patch(path, kept_count):
            match path:
                case ["attachments", number, *rest]:
                    return ["set", "addAttachments", str(int(number) - kept_count), *rest]
            return path

        def validate_attachments(texts):
            for index, text in enumerate(texts):
                raise InvalidInput(
                    "No name.",
                    constraint=ValidationConstraint.REQUIRED,
                    path=["attachments", str(index), "name"],
                )

        def change(texts, kept_count):
            try:
                validate_attachments(texts)
            except RequestError as error:
                raise error.copy_with_path(path_in_patch(list(error.path), kept_count))
    """)
    assert rules_and_paths(errors) == {
        ("REQUIRED", "attachments.0.name"),
        ("REQUIRED", "set.addAttachments.0.name"),
    }


def test_block_that_calls_a_parameter_runs_the_functions_of_callers(
    find_errors: FindErrors,
) -> None:
    errors = find_errors("""
        def check_with_path(path, check, *arguments):
            try:
                return check(*arguments)
            except InvalidInput as error:
                error.path = list(path)
                raise

        def change(text):
            check_with_path(["set", "target"], validate_address, text)
    """)
    assert rules_and_paths(errors) == {("ADDRESS", "address"), ("ADDRESS", "set.target")}


def test_path_and_index_are_assigned_together(find_errors: FindErrors) -> None:
    errors = find_errors("""
        TARGET_PATH = ("set", "forwardTo")

        def validate_targets(texts, path):
            for index, text in enumerate(texts):
                try:
                    validate_address(text)
                except InvalidInput as error:
                    error.path, error.index = list(path), index
                    raise

        def change(texts):
            validate_targets(texts, TARGET_PATH)
    """)
    assert rules_and_paths(errors) == {("ADDRESS", "address"), ("ADDRESS", "set.forwardTo")}


def test_handler_changes_only_errors_that_it_catches(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def change(text):
            try:
                validate_address(text)
                raise LimitReached("Too many.", limit=1, used=2, path=["names"])
            except LimitReached as error:
                raise error.copy_with_path([]) from None
    """)
    assert rules_and_paths(errors) == {
        ("ADDRESS", "address"),
        ("LIMIT_REACHED", ""),
        ("LIMIT_REACHED", "names"),
    }


def test_block_that_calls_its_function_is_followed_once(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def change(text):
            try:
                validate_address(text)
                change(text[1:])
            except InvalidInput as error:
                raise InvalidInput(error.message, constraint=error.constraint, path=["text"])
    """)
    assert rules_and_paths(errors) == {("ADDRESS", "text")}


def test_dropped_error_is_no_error_of_the_caller(find_errors: FindErrors) -> None:
    errors = find_errors("""
        from contextlib import suppress

        def validate_title(text):
            validate_name(text)
            raise NotFound(text, path=["title"])

        def is_address(text):
            try:
                validate_address(text)
            except InvalidInput:
                return False
            return True

        def change(text):
            with suppress(InvalidInput):
                validate_title(text)
            return is_address(text)
    """)
    assert rules_and_paths(errors) == {("NOT_FOUND", "title")}


def test_error_that_only_one_caller_drops_remains(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def change(text):
            try:
                validate_address(text)
            except InvalidInput:
                validate_address(text.strip())
    """)
    assert rules_and_paths(errors) == {("ADDRESS", "address")}


def test_error_that_is_raised_again_unchanged_remains(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def change(text):
            try:
                validate_address(text)
            except InvalidInput:
                text.close()
                raise
    """)
    assert rules_and_paths(errors) == {("ADDRESS", "address")}


def test_message_of_caught_error_is_the_condition(find_errors: FindErrors) -> None:
    errors = find_errors("""
        def cancel(ids):
            raise Conflict("Already sent.", path=["submissions"])

        def change(ids):
            try:
                cancel(ids)
            except Conflict as late:
                raise Conflict(late.message, path=["token"]) from late
    """)
    assert ErrorSite("CONFLICT", "", "token", "Already sent.") in errors


def rules_and_paths_of_mutation(mutation: str) -> set[tuple[str, str]]:
    (root_field,) = [field for field in iter_root_fields(SDL) if field.name == mutation]
    return rules_and_paths(errors_of_root_field(root_field))


@pytest.mark.parametrize(
    ("mutation", "rules"),
    [
        ("draftSend", {("TEMPLATE", "message"), ("TEMPLATE", "mailMerge.0.values")}),
        (
            "filterImport",
            {
                ("DEPTH", "content"),
                ("SELF", "content"),
                ("UNKNOWN", "content"),
                ("UNSUPPORTED", "content"),
            },
        ),
        ("keyValueIncrement", {("MIN", "delta"), ("MAX", "delta")}),
        ("resourceCreate", {("MIN", "bookingLimit"), ("MAX", "bookingLimit")}),
        ("transportCreate", {("ADDRESS", "destination"), ("DOMAIN", "destination")}),
        ("userUpdate", {("ADDRESS", "set.forwardTo")}),
    ],
)
def test_mutation_has_rules_of_errors_with_changed_paths(
    mutation: str, rules: set[tuple[str, str]]
) -> None:
    assert rules <= rules_and_paths_of_mutation(mutation)


def test_deletion_of_identity_provider_has_no_conflict() -> None:
    """The mutation has locked its users, so no other request moves one to another domain."""
    rules = rules_and_paths_of_mutation("identityProviderDelete")
    assert "CONFLICT" not in {rule for rule, _ in rules}


def test_draft_send_has_no_errors_of_a_message_that_the_client_hands_in() -> None:
    (root_field,) = [field for field in iter_root_fields(SDL) if field.name == "draftSend"]
    texts = [error.condition for error in errors_of_root_field(root_field)]
    assert "Exactly one of `raw` and `rawUpload` is required." not in texts
    assert "`from` and `identity` can't be combined." not in texts
