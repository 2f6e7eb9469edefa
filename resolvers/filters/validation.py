"""Validation of the query and action of a filter, from their input to their stored form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail import sieve
from mail.compose import draft_validation
from mail.filters import filter_compiler
from mail.filters.filter_compiler import GROUP_NAMES, MAX_DEPTH, ScriptNames
from mail.recipients import forward_targets
from mail.recipients.batch_resolution import load_receiving_address_rows
from mail.sieve import limits
from mail.sieve.execution import regex_groups
from mail.sieve.execution.flag_names import parse_flags
from mail.sieve.extensions.core_commands import FIELD_NAME
from models.errors import ErrorCollector, InvalidInput, MultipleErrors, NotFound
from models.mailboxes.tables import HOLDING_USES
from models.notifications.webhooks import Webhook
from models.validation_constraints import ValidationConstraint
from resolvers.addresses.targets import TargetsWithRelayPasswords, validate_forward_targets
from resolvers.context import Context
from resolvers.filters import search_query
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.bulk.flag_changes import validate_keyword

MAX_TEST_LENGTH = 255  # characters of a tested text
MAX_HEADER_NAME_LENGTH = 128  # characters of a header field name
MAX_TESTS = 100  # tests and groups of a query
MAX_COPIES = 10  # mailboxes
# the limit of a script, so that the filter has the same effect as Sieve
MAX_TARGETS = limits.MAX_REDIRECTS
MAX_KEYWORDS = 32
MAX_SUBJECT_BYTES = 512  # bytes
MAX_REPLY_BYTES = 16 << 10  # bytes of the text and of the HTML of a reply
TEXT_TESTS = ("from", "to", "subject", "listId", "text")
INPUT_NAME_BY_TEST = {"to": "toOrCc"}  # of stored tests that the schema names differently

InputValues = Mapping[str, Any]
InputPath = Sequence[str]


def validated_merged_query(
    values: InputValues, stored_query: InputValues, path: InputPath
) -> dict[str, Any]:
    """Merge the input into a stored query and return it. None removes a test.

    Raises InvalidInput with all problems.
    """
    problems = ErrorCollector()
    merged_query = {**stored_query, **_validated_tests(values, path, problems, 0)}
    problems.raise_collected()
    merged_query = {name: value for name, value in merged_query.items() if value is not None}
    if filter_compiler.test_count(merged_query) > MAX_TESTS:
        error_text = f"A filter has at most {MAX_TESTS} tests and groups."
        raise InvalidInput(error_text, constraint=ValidationConstraint.MAX, path=path)
    return merged_query


def _validated_tests(
    values: InputValues, path: InputPath, problems: ErrorCollector, depth: int
) -> dict[str, Any]:
    """Return the validated tests of a query. In nested queries, tests of None are removed."""
    if depth > MAX_DEPTH:
        error_text = f"Groups (all, any, not) are nested at most {MAX_DEPTH} levels deep."
        raise InvalidInput(error_text, constraint=ValidationConstraint.DEPTH, path=path)
    tests: dict[str, Any] = {}
    for name, value in values.items():
        at = [*path, INPUT_NAME_BY_TEST.get(name, name)]
        with problems.collecting():
            if value is None or value == []:
                tests[name] = None
            elif name == "query":
                tests[name] = {"text": value, "tests": _tests_from_search_text(value, at, depth)}
            elif name in GROUP_NAMES:
                tests[name] = _validated_compound_query(value, at, problems, depth)
            else:
                tests[name] = _validated_test(name, value, at)
    if depth:
        return {name: value for name, value in tests.items() if value is not None}
    return tests


def _tests_from_search_text(search_text: str, path: InputPath, depth: int) -> dict[str, Any]:
    """Return the tests of a search text, validated like those of the input."""
    problems = ErrorCollector()
    tests = _validated_tests(
        search_query.filter_tests_from_search_text(search_text, path), path, problems, depth + 1
    )
    try:
        problems.raise_collected()
    except (
        InvalidInput,
        MultipleErrors,
    ) as refused:  # the path of a test means nothing to the user
        error_text = " ".join(error.message for error in refused.all_errors[:5])
        raise InvalidInput(
            error_text, constraint=ValidationConstraint.SYNTAX, path=path
        ) from refused
    return tests


def _validated_compound_query(
    queries: Sequence[InputValues], path: InputPath, problems: ErrorCollector, depth: int
) -> list[dict[str, Any]]:
    """Validate the nested queries of a group; `depth` is that of the group.

    Errors of single tests are added to `problems`. Raises InvalidInput, which the caller collects,
    if there are more than MAX_TESTS queries, or if they are nested too deep.
    """
    if len(queries) > MAX_TESTS:
        raise InvalidInput(
            f"At most {MAX_TESTS} tests are allowed.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    return [
        _validated_tests(query, [*path, str(nth)], problems, depth + 1)
        for nth, query in enumerate(queries)
    ]


def _validated_test(test_name: str, value: Any, path: InputPath) -> Any:
    if test_name in TEXT_TESTS:
        return _validate_test_text(value, path)
    if test_name in ("larger", "smaller"):
        if not 0 < value < 1 << 63:
            error_text = "Must be at least 1 byte. Null removes the test."
            raise InvalidInput(error_text, constraint=ValidationConstraint.RANGE, path=path)
        return int(value)
    if test_name == "header":
        return _validated_header_test(value, path)
    if test_name == "regex":
        return _validated_regex_test(value, path)
    return bool(value)


def _validate_test_text(text: str, path: InputPath) -> str:
    draft_validation.validate_text_size_and_characters(text, path, 4 * MAX_TEST_LENGTH)
    if not text.split() or len(text) > MAX_TEST_LENGTH:
        error_text = (
            f"Must have from 1 to {MAX_TEST_LENGTH} characters, not only white space. "
            "Null removes the test."
        )
        raise InvalidInput(error_text, constraint=ValidationConstraint.LENGTH, path=path)
    return text


def _validated_header_test(values: InputValues, path: InputPath) -> dict[str, Any]:
    key, value = _validate_header_name(values["key"], path), values.get("value")
    return {
        "key": key,
        "value": None if value is None else _validate_test_text(value, [*path, "value"]),
    }


def _validate_header_name(header_name: str, path: InputPath) -> str:
    limit = MAX_HEADER_NAME_LENGTH
    if len(header_name) > limit or not FIELD_NAME.fullmatch(header_name):
        error_text = f"A field name has 1 to {limit} ASCII characters, without spaces and colons."
        raise InvalidInput(
            error_text, constraint=ValidationConstraint.PATTERN, path=[*path, "name"]
        )
    return header_name


def _validated_regex_test(values: InputValues, path: InputPath) -> dict[str, Any]:
    key, pattern = values.get("key"), _validate_test_text(values["pattern"], [*path, "pattern"])
    try:
        regex_groups.compile_regex(pattern, ignore_case=True)
    except InvalidInput as problem:
        raise InvalidInput(
            problem.message, constraint=ValidationConstraint.PATTERN, path=[*path, "pattern"]
        ) from problem
    return {"key": None if key is None else _validate_header_name(key, path), "pattern": pattern}


@dataclass(frozen=True, slots=True)
class FilterBeforeChange:
    """A filter and its stored action, before the change."""

    filter_id: int
    user_id: int
    stored_action: InputValues = field(default_factory=dict)  # without its targets
    targets: Sequence[str] = ()
    encrypted_relays: str | None = None


@dataclass(frozen=True, slots=True)
class CheckedAction:
    """A validated action in its stored form."""

    action: dict[str, Any]
    targets: Sequence[str]
    encrypted_relays: str | None
    new_targets: Sequence[str] = ()  # targets that the filter did not have


async def validated_merged_action(
    ctx: Context, values: InputValues, filter_state: FilterBeforeChange, path: InputPath
) -> CheckedAction:
    """Merge the input into a stored action and return it. None removes a part.

    Raises InvalidInput with all problems, and NotFound for an unknown mailbox or webhook.
    """
    problems, action = ErrorCollector(), dict(filter_state.stored_action)
    for name, value in values.items():
        with problems.collecting():
            if name != "forwardTo":
                action[name] = await _validated_action_part(
                    ctx, name, value, filter_state, [*path, name]
                )
    checked_action = CheckedAction({}, filter_state.targets, filter_state.encrypted_relays)
    with problems.collecting():
        if "forwardTo" in values:
            checked_action = await _validate_and_encrypt_targets(
                ctx, values["forwardTo"] or (), filter_state, [*path, "forwardTo"]
            )
    problems.raise_collected()
    action = {name: value for name, value in action.items() if value is not None}
    if not (action or checked_action.targets):
        raise InvalidInput(
            "At least one action is required.", constraint=ValidationConstraint.REQUIRED, path=path
        )
    return CheckedAction(
        action, checked_action.targets, checked_action.encrypted_relays, checked_action.new_targets
    )


async def _validated_action_part(
    ctx: Context, action_name: str, value: Any, filter_state: FilterBeforeChange, path: InputPath
) -> Any:
    """Return one part of an action in its stored form, or None to remove it."""
    if value is None or value == [] or (action_name == "stop" and not value):
        return None
    if action_name == "mailbox":
        (value,) = await _require_own_target_mailbox_ids(ctx, filter_state.user_id, [value], path)
    elif action_name == "copyTo":
        value = await _require_own_target_mailbox_ids(
            ctx, filter_state.user_id, value, path, is_list=True
        )
    elif action_name == "webhook":
        value = await _require_webhook_id(ctx, value, filter_state.user_id, path)
    elif action_name in ("keywords", "removeKeywords"):
        value = _validated_keywords(value, path)
    elif action_name == "reply":
        value = _validated_filter_reply(value, path)
    return value


async def _require_own_target_mailbox_ids(
    ctx: Context,
    user_id: int,
    selectors: Sequence[MailboxSelector],
    path: InputPath,
    *,
    is_list: bool = False,
) -> list[int]:
    if len(selectors) > MAX_COPIES:
        raise InvalidInput(
            f"At most {MAX_COPIES} mailboxes are allowed.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    rows = await mailbox_loaders.load_visible_by_selectors(
        ctx, [(user_id, selector) for selector in selectors]
    )
    for nth, (name, row) in enumerate(zip(selectors, rows, strict=True)):
        index = nth if is_list else None
        if row is None or row.user_id != user_id:
            raise NotFound(str(name), path=path, index=index)
        if row.special_use in HOLDING_USES:  # messages are moved out of it later
            error_text = "This mailbox is reserved for snoozed or scheduled messages."
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.SPECIAL_USE, path=path, index=index
            )
    return list(dict.fromkeys(row.id for row in rows if row))


def _validated_keywords(names: Sequence[str], path: InputPath) -> list[str]:
    if len(names) > MAX_KEYWORDS:
        raise InvalidInput(
            f"At most {MAX_KEYWORDS} keywords are allowed.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    for index, name in enumerate(names):
        try:
            validate_keyword(name)
        except InvalidInput as error:
            raise InvalidInput(
                error.message, constraint=ValidationConstraint.PATTERN, path=path, index=index
            ) from error
        if parse_flags([name]) != (name,):
            raise InvalidInput(
                "The value must be an IMAP keyword.",
                constraint=ValidationConstraint.PATTERN,
                path=path,
                index=index,
            )
    return list(dict.fromkeys(names))


def _validated_filter_reply(values: InputValues, path: InputPath) -> dict[str, str]:
    subject, text, html = (values.get(name) or "" for name in ("subject", "text", "html"))
    draft_validation.validate_single_line_text(subject, [*path, "subject"], MAX_SUBJECT_BYTES)
    draft_validation.validate_text_size_and_characters(text, [*path, "text"], MAX_REPLY_BYTES)
    draft_validation.validate_text_size_and_characters(html, [*path, "html"], MAX_REPLY_BYTES)
    if not (text.strip() or html.strip()):
        error_text = "A reply requires text or html."
        raise InvalidInput(
            error_text, constraint=ValidationConstraint.REQUIRED, path=[*path, "text"]
        )
    return {"subject": subject.strip(), "text": text, "html": html}


async def _require_webhook_id(ctx: Context, webhook_id: int, user_id: int, path: InputPath) -> int:
    statement = select(col(Webhook.id)).where(
        col(Webhook.id) == webhook_id, col(Webhook.user_id) == user_id
    )
    if not await ctx.read(statement):
        raise NotFound(str(webhook_id), path=path)
    return webhook_id


async def _validate_and_encrypt_targets(
    ctx: Context, target_texts: Sequence[str], filter_state: FilterBeforeChange, path: InputPath
) -> CheckedAction:
    """Return the targets in their stored form. Raises InvalidInput for an address of the user."""
    if len(target_texts) > MAX_TARGETS:
        raise InvalidInput(
            f"At most {MAX_TARGETS} targets are allowed.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    old_relays = forward_targets.decrypt_relay_urls(
        ctx.environment, filter_state.filter_id, filter_state.encrypted_relays
    )
    targets: TargetsWithRelayPasswords = validate_forward_targets(
        ctx, target_texts, old_relays, path
    )
    addresses = [target for target in targets.shown_targets if "://" not in target]
    local_addresses = await load_receiving_address_rows(ctx.environment, addresses, ctx.read)
    for index, text in enumerate(targets.shown_targets):
        if text in local_addresses and local_addresses[text].user_id == filter_state.user_id:
            error_text = "A filter can't forward to its own account: use `mailbox` or `copyTo`."
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.SELF, path=path, index=index
            )
    sealed = forward_targets.encrypt_relay_urls_if_any(
        ctx.environment, filter_state.filter_id, targets.relays_with_password
    )
    new_targets = [
        target
        for target in targets.shown_targets
        if target not in filter_state.targets
        or old_relays.get(target) != targets.relays_with_password.get(target)
    ]
    return CheckedAction({}, targets.shown_targets, sealed, new_targets)


def require_filter_fits_into_script(
    filter_id: int, stored_query: InputValues, checked_action: CheckedAction
) -> None:
    """Raise InvalidInput if the filter is larger than a Sieve script can be."""
    action_ = {**checked_action.action, "forwardTo": list(checked_action.targets)}
    longest = {mailbox: "x" * 100 for mailbox in (checked_action.action.get("mailbox"),) if mailbox}
    script = sieve.print_script(
        filter_compiler.script_from_filter(filter_id, stored_query, action_, ScriptNames(longest))
    )
    if len(script.encode()) > limits.MAX_SCRIPT_BYTES:
        error_text = f"The Sieve form of a filter has at most {limits.MAX_SCRIPT_BYTES} bytes."
        raise InvalidInput(error_text, constraint=ValidationConstraint.MAX, path=["query"])
