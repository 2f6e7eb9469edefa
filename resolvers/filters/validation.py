"""Validation of the query and action of a filter, from their input to their stored form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail import sieve
from mail.compose import message_builder
from mail.filters import filter_compiler
from mail.filters.filter_compiler import GROUPS, NESTED, Names
from mail.recipients import forward_targets
from mail.recipients.batch_resolution import resolve_all
from mail.sieve import limits
from mail.sieve.execution import regex_groups
from mail.sieve.execution.flag_names import known
from mail.sieve.extensions.core_commands import FIELD_NAME
from models.errors import Invalid, NotFound, Problems, Several
from models.mailboxes.tables import HOLDING_USES
from models.notifications.webhooks import Webhook
from resolvers.addresses.targets import Targets, checked_targets
from resolvers.context import Context
from resolvers.filters import search_query
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import Named
from resolvers.messages.bulk.row_changes import keyword_of

WORD = 255  # characters of a tested text
NAME = 128  # characters of a header field name
TESTS = 100  # tests and groups of a query
COPIES = 10  # mailboxes
TARGETS = limits.REDIRECTS  # the limit of a script, so that the filter has the same effect as Sieve
LABELS = 32
SUBJECT = 512  # bytes
TEXT = 16 << 10  # bytes of the text and of the HTML of a reply
PLAIN = ("from", "to", "subject", "listId", "text")
FLAGS = ("seen", "flag", "delete", "spam")

Form = Mapping[str, Any]
Path = Sequence[str]


def query(given: Form, before: Form, path: Path) -> dict[str, Any]:
    """Merge the input into a stored query and return it. None removes a test.

    Raises InvalidInput with all problems.
    """
    problems = Problems()
    found = {**before, **_query(given, path, problems, 0)}
    problems.settle()
    found = {name: value for name, value in found.items() if value is not None}
    if filter_compiler.size_of(found) > TESTS:
        words = f"at most {TESTS} tests and groups"
        raise Invalid(words, constraint="max", path=path)
    return found


def _query(given: Form, path: Path, problems: Problems, depth: int) -> dict[str, Any]:
    """Return the validated tests of a query. In nested queries, tests of None are removed."""
    if depth > NESTED:
        words = f"all, any and not go {NESTED} levels deep"
        raise Invalid(words, constraint="depth", path=path)
    found: dict[str, Any] = {}
    for name, value in given.items():
        at = [*path, name]
        with problems.caught():
            if value is None or value == []:
                found[name] = None
            elif name == "query":
                found[name] = {"text": value, "tests": _from_text(value, at, depth)}
            elif name in GROUPS:
                found[name] = _queries(value, at, problems, depth)
            else:
                found[name] = _test(name, value, at)
    if depth:
        return {name: value for name, value in found.items() if value is not None}
    return found


def _from_text(text: str, path: Path, depth: int) -> dict[str, Any]:
    """Return the tests of a search text, validated like those of the input."""
    problems = Problems()
    found = _query(search_query.tests_of(text, path), path, problems, depth + 1)
    try:
        problems.settle()
    except (Invalid, Several) as refused:  # the path of a test means nothing to the user
        words = "; ".join(one.message for one in refused.each[:5])
        raise Invalid(words, constraint="syntax", path=path) from refused
    return found


def _queries(
    given: Sequence[Form], path: Path, problems: Problems, depth: int
) -> list[dict[str, Any]]:
    if len(given) > TESTS:
        raise Invalid(f"at most {TESTS} at once", constraint="max", path=path)
    return [_query(one, [*path, str(nth)], problems, depth + 1) for nth, one in enumerate(given)]


def _test(name: str, value: Any, path: Path) -> Any:
    if name in PLAIN:
        return _word(value, path)
    if name == "size":
        if not 0 < abs(value) < 1 << 63:
            words = "more than so many bytes, or below 0 less; null for no such test"
            raise Invalid(words, constraint="range", path=path)
        return int(value)
    if name == "header":
        return _header(value, path)
    if name == "regex":
        return _regex(value, path)
    return bool(value)


def _word(text: str, path: Path) -> str:
    message_builder.text_of(text, path, 4 * WORD)
    if not text.split() or len(text) > WORD:
        words = f"1 to {WORD} characters, and not blanks alone; null for no such test"
        raise Invalid(words, constraint="length", path=path)
    return text


def _header(given: Form, path: Path) -> dict[str, Any]:
    key, value = _key(given["key"], path), given.get("value")
    return {"key": key, "value": None if value is None else _word(value, [*path, "value"])}


def _key(key: str, path: Path) -> str:
    limit = NAME
    if len(key) > limit or not FIELD_NAME.fullmatch(key):
        words = f"the name of a field has 1 to {limit} signs of ASCII, without blank and colon"
        raise Invalid(words, constraint="pattern", path=[*path, "key"])
    return key


def _regex(given: Form, path: Path) -> dict[str, Any]:
    key, pattern = given.get("key"), _word(given["pattern"], [*path, "pattern"])
    try:
        regex_groups.compiled(pattern, fold=True)
    except Invalid as problem:
        raise Invalid(problem.message, constraint="pattern", path=[*path, "pattern"]) from problem
    return {"key": None if key is None else _key(key, path), "pattern": pattern}


@dataclass(frozen=True, slots=True)
class Whose:
    """A filter and its stored action, before the change."""

    id: int
    user_id: int
    action: Form = field(default_factory=dict)  # without its targets
    targets: Sequence[str] = ()
    relays: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """A validated action in its stored form."""

    action: dict[str, Any]
    targets: Sequence[str]
    relays: str | None
    fresh: Sequence[str] = ()  # targets that the filter did not have


async def action(ctx: Context, given: Form, whose: Whose, path: Path) -> Checked:
    """Merge the input into a stored action and return it. None removes a part.

    Raises InvalidInput with all problems, and NotFound for an unknown mailbox or webhook.
    """
    problems, found = Problems(), dict(whose.action)
    for name, value in given.items():
        with problems.caught():
            if name != "targets":
                found[name] = await _part(ctx, name, value, whose, [*path, name])
    to = Checked({}, whose.targets, whose.relays)
    with problems.caught():
        if "targets" in given:
            to = await _targets(ctx, given["targets"] or (), whose, [*path, "targets"])
    problems.settle()
    found = {name: value for name, value in found.items() if value is not None}
    if not (found or to.targets):
        raise Invalid("say what happens", constraint="required", path=path)
    return Checked(found, to.targets, to.relays, to.fresh)


async def _part(ctx: Context, name: str, value: Any, whose: Whose, path: Path) -> Any:
    """Return one part of an action in its stored form, or None to remove it."""
    if value is None or value == [] or (name == "stop" and not value):
        return None
    if name == "mailbox":
        (value,) = await _boxes(ctx, whose.user_id, [value], path)
    elif name == "copyTo":
        value = await _boxes(ctx, whose.user_id, value, path, many=True)
    elif name == "webhook":
        value = await _webhook(ctx, value, whose.user_id, path)
    elif name in ("labels", "removeLabels"):
        value = _labels(value, path)
    elif name == "reply":
        value = _reply(value, path)
    return value


async def _boxes(
    ctx: Context, user_id: int, named: Sequence[Named], path: Path, *, many: bool = False
) -> list[int]:
    if len(named) > COPIES:
        raise Invalid(f"at most {COPIES} mailboxes", constraint="max", path=path)
    rows = await mailbox_loaders.named(ctx, [(user_id, one) for one in named])
    for nth, (name, row) in enumerate(zip(named, rows, strict=True)):
        index = nth if many else None
        if row is None or row.user_id != user_id:
            refusal = NotFound(str(name), path=path)
            refusal.index = index
            raise refusal
        if row.special_use in HOLDING_USES:  # messages are moved out of it later
            words = "this mailbox holds snoozed or scheduled messages: nothing else is put there"
            raise Invalid(words, constraint="specialUse", path=path, index=index)
    return list(dict.fromkeys(row.id for row in rows if row))


def _labels(names: Sequence[str], path: Path) -> list[str]:
    if len(names) > LABELS:
        raise Invalid(f"at most {LABELS} keywords", constraint="max", path=path)
    for index, name in enumerate(names):
        try:
            keyword_of(name)
        except Invalid as wrong:
            raise Invalid(wrong.message, constraint="pattern", path=path, index=index) from wrong
        if known([name]) != (name,):
            raise Invalid("not a keyword", constraint="pattern", path=path, index=index)
    return list(dict.fromkeys(names))


def _reply(given: Form, path: Path) -> dict[str, str]:
    subject, text, html = (given.get(name) or "" for name in ("subject", "text", "html"))
    message_builder.line_of(subject, [*path, "subject"], SUBJECT)
    message_builder.text_of(text, [*path, "text"], TEXT)
    message_builder.text_of(html, [*path, "html"], TEXT)
    if not (text.strip() or html.strip()):
        words = "there is nothing to answer: give text or html"
        raise Invalid(words, constraint="required", path=[*path, "text"])
    return {"subject": subject.strip(), "text": text, "html": html}


async def _webhook(ctx: Context, key: int, user_id: int, path: Path) -> int:
    statement = select(col(Webhook.id)).where(
        col(Webhook.id) == key, col(Webhook.user_id) == user_id
    )
    if not await ctx.read(statement):
        raise NotFound(str(key), path=path)
    return key


async def _targets(ctx: Context, given: Sequence[str], whose: Whose, path: Path) -> Checked:
    """Return the targets in their stored form. Raises InvalidInput for an address of the user."""
    if len(given) > TARGETS:
        raise Invalid(f"at most {TARGETS} targets", constraint="max", path=path)
    were = forward_targets.opened(ctx.world, whose.id, whose.relays)
    to: Targets = checked_targets(ctx, given, were, path)
    addresses = [one for one in to.shown if "://" not in one]
    here = await resolve_all(ctx.world, addresses, ctx.read)
    for index, text in enumerate(to.shown):
        if text in here and here[text].user_id == whose.user_id:
            words = "a filter does not send on to its own account: mailbox and copyTo store there"
            raise Invalid(words, constraint="self", path=path, index=index)
    sealed = forward_targets.sealed(ctx.world, whose.id, to.relays)
    fresh = [
        one for one in to.shown if one not in whose.targets or were.get(one) != to.relays.get(one)
    ]
    return Checked({}, to.shown, sealed, fresh)


def check_script(key: int, found: Form, done: Checked) -> None:
    """Raise InvalidInput if the filter is larger than a Sieve script can be."""
    action_ = {**done.action, "targets": list(done.targets)}
    longest = {mailbox: "x" * 100 for mailbox in (done.action.get("mailbox"),) if mailbox}
    script = sieve.printed(filter_compiler.tree(key, found, action_, Names(longest)))
    if len(script.encode()) > limits.SCRIPT:
        words = f"a filter has at most {limits.SCRIPT} bytes, as Sieve writes it"
        raise Invalid(words, constraint="max", path=["query"])
