"""Compile filters to Sieve and compute what the filters of an account do with a message.

A query is a mapping of conditions that must all hold; an action is a mapping of effects. Both
use the names of the API and hold only the fields that are set:

    {"from": "ada", "any": [{"subject": "a"}, {"larger": 1000}], "not": [{"header": {"key": "X"}}]}
    {"mailbox": 7, "keywords": ["news"], "seen": True}

A search text is one more condition. It is stored with the query it was parsed to:

    {"query": {"text": "subject:a OR larger:1k", "tests": {"any": [{"subject": "a"}, …]}}}

Filters run in order. For `seen`, `flag`, `delete`, `spam` and `mailbox` the first matching filter
that sets the field decides, even with False. For all other fields the values of all filters are
combined, and keywords that one of them removes are not set. A filter with `stop` is the last one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from mail import sieve
from mail.filters.filter_result import FilterReplyContent, FilterResult, FilterTarget
from mail.sieve import SieveEnvelope, SieveEnvironment, SieveProgram, SieveRunError, limits
from mail.sieve.execution.comparators import PLAIN
from mail.sieve.syntax.syntax_tree import (
    Argument,
    CommandNode,
    NumberNode,
    StringNode,
    TagNode,
    TestNode,
    Tree,
    string_list,
)

FilterForm = Mapping[str, Any]

FIRST_WINS = (
    "delete",
    "spam",
    "mailbox",
    "seen",
    "flag",
)  # the first filter that sets the field decides
ACTION_NAMES = (
    *FIRST_WINS, "copyTo", "keywords", "removeKeywords", "forwardTo", "reply", "webhook", "stop",
)  # fmt: skip
GROUP_NAMES = ("all", "any", "not")
MAX_DEPTH = 5  # levels of nested queries
MAX_STEPS = 40_000  # interpreter steps for all filters of an account and one message
MAX_PLACES = 32  # mailboxes, and keywords, that filters give a message
MAX_CACHED_PROGRAMS = 1024  # in the cache
MAX_CACHED_QUERY = 2048  # bytes of a query whose program is cached
BYTES_PER_STEP = 8  # a larger query is compiled each time, at this cost
MAX_VACATION_SECONDS = 90 * 86_400  # longest time that Sieve remembers a sender
_ATTACHMENT_EXTENSION = "vnd.merganser.attachments"
HEADER_FIELDS = {"from": ("from", "sender"), "to": ("to", "cc"), "subject": ("subject",)}
HEADER_FIELDS["listId"] = ("list-id",)
_FIXED_TIME = datetime(1970, 1, 1, tzinfo=UTC)  # filters don't use the current time
_EMPTY_ENVELOPE = SieveEnvelope("", "")  # filters don't use the envelope


def sieve_test_from_query(query: FilterForm) -> TestNode:
    """Return the query as a Sieve test."""
    return _all_of(list(_tests_of_query(query)))


def _tests_of_query(query: FilterForm) -> Iterator[TestNode]:
    """Yield a Sieve test for each condition of a query."""
    for name, fields in HEADER_FIELDS.items():
        if name in query:
            yield _contains_test(TestNode("header"), string_list(*fields), query[name])
    if "text" in query:
        yield _contains_test(TestNode("body", (TagNode("text"),)), None, query["text"])
    if "hasAttachment" in query:
        there = TestNode("hasattachment")
        yield there if query["hasAttachment"] else TestNode("not", tests=(there,))
    for name, tag in (("larger", "over"), ("smaller", "under")):
        if name in query:
            yield TestNode("size", (TagNode(tag), NumberNode(query[name])))
    if header := query.get("header"):
        if header.get("value") is None:
            yield TestNode("exists", (StringNode(header["key"]),))
        else:
            yield _contains_test(TestNode("header"), StringNode(header["key"]), header["value"])
    if regex := query.get("regex"):
        yield _regex_test(regex)
    yield from _tests_of_groups(query)


def _tests_of_groups(query: FilterForm) -> Iterator[TestNode]:
    """Yield a Sieve test for each nested query."""
    for one in required_queries(query):
        yield sieve_test_from_query(one)
    if some := query.get("any"):
        yield _any_of([sieve_test_from_query(one) for one in some])
    for one in query.get("not", ()):
        yield TestNode("not", tests=(sieve_test_from_query(one),))


def _contains_test(test: TestNode, target: Argument | None, value: str) -> TestNode:
    """Return a `:contains` test that ignores case."""
    how = (TagNode("contains"), TagNode("comparator"), StringNode(PLAIN))
    which = (target,) if target is not None else ()
    return TestNode(test.name, (*test.arguments, *how, *which, StringNode(value)))


def _regex_test(regex_query: FilterForm) -> TestNode:
    """Return a `:regex` test of a header field or of the text."""
    how, pattern = TagNode("regex"), StringNode(regex_query["pattern"])
    if regex_query.get("key") is None:
        return TestNode("body", (TagNode("text"), how, pattern))
    return TestNode("header", (how, StringNode(regex_query["key"]), pattern))


def _all_of(tests: Sequence[TestNode]) -> TestNode:
    if not tests:
        return TestNode("true")
    return tests[0] if len(tests) == 1 else TestNode("allof", tests=tuple(tests))


def _any_of(tests: Sequence[TestNode]) -> TestNode:
    return tests[0] if len(tests) == 1 else TestNode("anyof", tests=tuple(tests))


def required_queries(query: FilterForm) -> list[FilterForm]:
    """Return the nested queries that must hold: the parsed search text and `all`."""
    text = query.get("query")
    return [*([text["tests"]] if text else []), *query.get("all", ())]


def nested_queries(query: FilterForm) -> list[FilterForm]:
    """Return all nested queries of a query."""
    return [*required_queries(query), *query.get("any", ()), *query.get("not", ())]


def nesting_depth(query: FilterForm) -> int:
    """Return the levels of nested queries in a query; 0 if there are none."""
    return max((1 + nesting_depth(one) for one in nested_queries(query)), default=0)


def test_count(query: FilterForm) -> int:
    """Return the number of conditions and queries in a query."""
    return 1 + len(query) + sum(map(test_count, nested_queries(query)))


@dataclass(frozen=True, slots=True)
class ScriptNames:
    """The mailbox paths and the reply interval that a script is written with."""

    mailbox_paths: Mapping[int, str]  # paths by ID; INBOX replaces a missing mailbox
    reply_interval: int = 86_400  # seconds between two replies to a sender


def script_from_filter(
    filter_id: int, query: FilterForm, action: FilterForm, script_names: ScriptNames
) -> Tree:
    """Return a filter as a script. See `actions_without_sieve` for what it can't express."""
    test, commands = (
        sieve_test_from_query(query),
        tuple(_commands_of_action(filter_id, action, script_names)),
    )
    needed = sorted(
        {
            *_extensions_of_test(test),
            *(one for each in commands for one in _extensions_of_command(each)),
        }
    )
    inner = commands if test.name == "true" else (CommandNode("if", (), (test,), commands),)
    return (CommandNode("require", (string_list(*needed),)), *inner) if needed else inner


def actions_without_sieve(action: FilterForm) -> dict[str, Sequence[Any]]:
    """Return the parts of an action that Sieve can't express: URL targets and the webhook."""
    elsewhere = [one for one in action.get("forwardTo", ()) if "://" in one]
    hooks = [action["webhook"]] if "webhook" in action else []
    return {"forwardTo": elsewhere, "webhook": hooks}


def _commands_of_action(
    filter_id: int, action: FilterForm, script_names: ScriptNames
) -> Iterator[CommandNode]:
    """Yield the commands of an action."""
    flags = {"\\Seen": action.get("seen"), "\\Flagged": action.get("flag")}
    added, removed = list(action.get("keywords", ())), list(action.get("removeKeywords", ()))
    on = [*(flag for flag, said in flags.items() if said), *added]
    off = [*(flag for flag, said in flags.items() if said is False), *removed]
    if on:
        yield CommandNode("addflag", (string_list(*on),))
    if off:
        yield CommandNode("removeflag", (string_list(*off),))
    for target in action.get("forwardTo", ()):
        if "://" not in target:
            yield CommandNode("redirect", (TagNode("copy"), StringNode(target)))
    if reply := action.get("reply"):
        yield _vacation_command(filter_id, reply, script_names)
    for box in () if action.get("delete") else action.get("copyTo", ()):
        yield CommandNode(
            "fileinto", (TagNode("copy"), StringNode(script_names.mailbox_paths.get(box, "INBOX")))
        )
    yield from _storage_commands(action, script_names)
    if action.get("stop"):
        yield CommandNode("stop")


def _storage_commands(action: FilterForm, script_names: ScriptNames) -> Iterator[CommandNode]:
    """Yield the command that stores or discards the message."""
    if action.get("delete"):
        yield CommandNode("discard")
    elif action.get("spam"):
        yield CommandNode(
            "fileinto", (TagNode("specialuse"), StringNode("\\Junk"), StringNode("INBOX"))
        )
    elif "mailbox" in action:
        yield CommandNode(
            "fileinto", (StringNode(script_names.mailbox_paths.get(action["mailbox"], "INBOX")),)
        )
    elif action.get("spam") is False:
        yield CommandNode("fileinto", (StringNode("INBOX"),))


def _vacation_command(
    filter_id: int, reply_form: FilterForm, script_names: ScriptNames
) -> CommandNode:
    """Return the `vacation` command of a reply."""
    seconds = min(script_names.reply_interval, MAX_VACATION_SECONDS)
    said: list[Argument] = [
        TagNode("seconds"),
        NumberNode(seconds),
        TagNode("handle"),
        StringNode(vacation_handle(filter_id)),
    ]
    if reply_form["subject"]:
        said += [TagNode("subject"), StringNode(reply_form["subject"])]
    if reply_form["html"]:
        said.append(TagNode("mime"))
    return CommandNode(
        "vacation", (*said, StringNode(reply_body(reply_form["text"], reply_form["html"])))
    )


def vacation_handle(filter_id: int) -> str:
    """Return the `:handle` under which the senders that a filter replied to are remembered."""
    return f"filter:{filter_id}"


def reply_body(plain_text: str, html_text: str) -> str:
    """Return the body of a reply: the text, or a MIME entity if there is HTML."""
    if not html_text:
        return plain_text
    if not plain_text:
        return f"{_part_header('html')}{html_text}"
    border = "=_alternative"
    while border in plain_text or border in html_text:
        border += "="
    parts = "".join(
        f"--{border}\r\n{_part_header(kind)}{one}\r\n"
        for kind, one in (("plain", plain_text), ("html", html_text))
    )
    return (
        f'Content-Type: multipart/alternative; boundary="{border}"\r\n\r\n{parts}--{border}--\r\n'
    )


def _part_header(text_subtype: str) -> str:
    """Return the MIME header of a text part."""
    encoding = "Content-Transfer-Encoding: 8bit"
    return f"Content-Type: text/{text_subtype}; charset=utf-8\r\n{encoding}\r\n\r\n"


_EXTENSION_BY_COMMAND = {
    "addflag": "imap4flags",
    "fileinto": "fileinto",
    "removeflag": "imap4flags",
    "vacation": "vacation-seconds",
}
_EXTENSION_BY_TAG = {"copy": "copy", "specialuse": "special-use"}
_EXTENSION_BY_TEST = {"body": "body", "hasattachment": _ATTACHMENT_EXTENSION}


def _extensions_of_command(command: CommandNode) -> Iterator[str]:
    """Yield the Sieve extensions of a command."""
    if command.name in _EXTENSION_BY_COMMAND:
        yield _EXTENSION_BY_COMMAND[command.name]
    for one in command.arguments:
        if isinstance(one, TagNode) and one.name in _EXTENSION_BY_TAG:
            yield _EXTENSION_BY_TAG[one.name]


def _extensions_of_test(test: TestNode) -> Iterator[str]:
    """Yield the Sieve extensions of a test and the tests in it."""
    if test.name in _EXTENSION_BY_TEST:
        yield _EXTENSION_BY_TEST[test.name]
    tags = {one.name for one in test.arguments if isinstance(one, TagNode)}
    if "comparator" in tags:
        yield f"comparator-{PLAIN}"
    if "regex" in tags:
        yield "regex"
    for inner in test.tests:
        yield from _extensions_of_test(inner)


@lru_cache(MAX_CACHED_PROGRAMS)
def _cached_program(query_json: bytes) -> SieveProgram:
    """Return the program of a query from the cache."""
    return _compile_query(query_json)


def _program_and_cost(query_json: bytes) -> tuple[SieveProgram, int]:
    """Return the program of a query and the steps that compiling it counts as."""
    if len(query_json) <= MAX_CACHED_QUERY:
        return _cached_program(query_json), 0
    return _compile_query(query_json), len(query_json) // BYTES_PER_STEP


def _compile_query(query_json: bytes) -> SieveProgram:
    """Compile a query to a program that discards matching messages."""
    test = sieve_test_from_query(orjson.loads(query_json))
    needed = sorted(set(_extensions_of_test(test)))
    first = (CommandNode("require", (string_list(*needed),)),) if needed else ()
    return sieve.compile_tree((*first, CommandNode("if", (), (test,), (CommandNode("discard"),))))


@dataclass(frozen=True, slots=True)
class CompiledFilter:
    """A filter in the form that is run."""

    filter_id: int
    query: FilterForm
    action: FilterForm
    targets: Sequence[FilterTarget] = ()  # targets of the action, with secret URLs


@dataclass
class FilterTestMessage:
    """A message that filters test. Its decoded parts are shared by all filters."""

    sieve_message: sieve.SieveMessage
    _sieve_tests: sieve.SieveTests = field(init=False)

    def __post_init__(self) -> None:
        self._sieve_tests = sieve.SieveTests(
            self.sieve_message, _EMPTY_ENVELOPE, SieveEnvironment(_FIXED_TIME, traced=False)
        )

    def matches_and_steps(self, query: FilterForm) -> tuple[bool, int]:
        """Return (query matches, steps used). A query beyond the step limit does not match."""
        written = orjson.dumps(query, option=orjson.OPT_SORT_KEYS)
        program, steps = _program_and_cost(written)
        try:
            fits, more = self._sieve_tests.evaluate_first(program)
        except SieveRunError:
            return False, limits.MAX_STEPS
        return fits, steps + more


@dataclass(frozen=True, slots=True)
class EvaluatedFilter:
    """A filter with the result of its query."""

    compiled_filter: CompiledFilter
    matches: bool
    effective_actions: tuple[
        str, ...
    ] = ()  # action fields with an effect, in the order of ACTION_NAMES


def evaluate_filters(
    filters: Sequence[CompiledFilter],
    message: FilterTestMessage,
    *,
    continue_after_stop: bool = False,
) -> list[EvaluatedFilter]:
    """Evaluate filters in order, up to one that matches and has `stop`.

    With `continue_after_stop`, the filters after it are evaluated too, but have no effect.
    """
    found: list[EvaluatedFilter] = []
    said: dict[str, Any] = {}
    ended, spent = False, 0
    for rule in filters:
        if spent > MAX_STEPS or (ended and not continue_after_stop):
            break
        fits, steps = message.matches_and_steps(rule.query)
        spent += steps
        acts: list[str] = []
        if fits and not ended:
            acts = [name for name in ACTION_NAMES if name in rule.action and name not in said]
            said |= {name: rule.action[name] for name in acts if name in FIRST_WINS}
            ended = bool(rule.action.get("stop"))
        found.append(EvaluatedFilter(rule, fits, tuple(acts)))
    hidden = _overridden_actions(said)
    return [_without_actions(one, hidden) for one in found] if hidden else found


def _overridden_actions(decided_actions: FilterForm) -> frozenset[str]:
    """Return the actions that have no effect because of an earlier decision."""
    if decided_actions.get("delete"):
        return frozenset({"spam", "mailbox", "copyTo"})
    return frozenset({"mailbox"}) if decided_actions.get("spam") else frozenset()


def _without_actions(evaluated: EvaluatedFilter, action_names: frozenset[str]) -> EvaluatedFilter:
    """Return the evaluated filter without some of its actions."""
    return EvaluatedFilter(
        evaluated.compiled_filter,
        evaluated.matches,
        tuple(name for name in evaluated.effective_actions if name not in action_names),
    )


def filter_result(filters: Sequence[CompiledFilter], message: FilterTestMessage) -> FilterResult:
    """Return what these filters do with a message.

    `mailbox_id` is set beside `delete` and `spam`, which have precedence. It is used if the account
    keeps no spam in Junk.
    """
    fit = [one for one in evaluate_filters(filters, message) if one.matches]
    said: dict[str, Any] = {}
    for one in fit:
        for name in FIRST_WINS:
            if name in one.compiled_filter.action:
                said.setdefault(name, one.compiled_filter.action[name])
    removed = _unique_values(fit, "removeKeywords")
    added = [name for name in _unique_values(fit, "keywords") if name not in removed]
    hooks = [
        one.compiled_filter.action["webhook"]
        for one in fit
        if "webhook" in one.compiled_filter.action
    ]
    targets: dict[str, FilterTarget] = {}
    for to in (to for one in fit for to in one.compiled_filter.targets):
        targets.setdefault(_comparable_target(to), to)
    return FilterResult(
        is_deleted=bool(said.get("delete")),
        is_spam=said.get("spam"),
        mailbox_id=said.get("mailbox"),
        copy_mailbox_ids=() if said.get("delete") else _unique_values(fit, "copyTo")[:MAX_PLACES],
        is_seen=bool(said.get("seen")),
        is_flagged=bool(said.get("flag")),
        added_keywords=added[:MAX_PLACES],
        removed_keywords=removed,
        targets=list(targets.values()),
        replies=[
            _reply_of_filter(one.compiled_filter)
            for one in fit
            if "reply" in one.compiled_filter.action
        ],
        webhook_ids=list(dict.fromkeys(hooks)),
        matched_filter_ids=[one.compiled_filter.filter_id for one in fit],
    )


def _comparable_target(target: FilterTarget) -> str:
    """Return the target in the form that duplicates are found by."""
    return target.secret_url if "://" in target.secret_url else target.secret_url.casefold()


def _unique_values(matching: Sequence[EvaluatedFilter], action_name: str) -> list[Any]:
    """Return the values that filters set for an action, each once."""
    return list(
        dict.fromkeys(
            it for one in matching for it in one.compiled_filter.action.get(action_name, ())
        )
    )


def _reply_of_filter(compiled_filter: CompiledFilter) -> FilterReplyContent:
    """Return the reply of a filter."""
    said = compiled_filter.action["reply"]
    return FilterReplyContent(
        compiled_filter.filter_id, said["subject"], said["text"], said["html"]
    )
