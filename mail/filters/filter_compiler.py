"""Compile filters to Sieve and compute what the filters of an account do with a message.

A query is a mapping of conditions that must all hold; an action is a mapping of effects. Both
use the names of the API and hold only the fields that are set:

    {"from": "ada", "any": [{"subject": "a"}, {"size": 1000}], "not": [{"header": {"key": "X"}}]}
    {"mailbox": 7, "labels": ["news"], "seen": True}

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
from mail.filters.filter_result import Decision, Reply, Target
from mail.sieve import Circumstances, Envelope, Program, RunError, limits
from mail.sieve.execution.comparators import PLAIN
from mail.sieve.syntax.syntax_tree import Argument, Command, Number, Tag, Test, Text, Tree, texts

Form = Mapping[str, Any]

DECIDED = (
    "delete",
    "spam",
    "mailbox",
    "seen",
    "flag",
)  # the first filter that sets the field decides
ACTIONS = (
    *DECIDED, "copyTo", "labels", "removeLabels", "targets", "reply", "webhook", "stop",
)  # fmt: skip
GROUPS = ("all", "any", "not")
NESTED = 5  # levels of nested queries
STEPS = 40_000  # interpreter steps for all filters of an account and one message
PLACES = 32  # mailboxes, and keywords, that filters give a message
PROGRAMS = 1024  # in the cache
SMALL = 2048  # bytes of a query whose program is cached
PER_STEP = 8  # a larger query is compiled each time, at this cost
VACATION = 90 * 86_400  # longest time that Sieve remembers a sender
_ATTACHMENTS = "vnd.merganser.attachments"
FIELDS = {"from": ("from", "sender"), "to": ("to", "cc"), "subject": ("subject",)}
FIELDS["listId"] = ("list-id",)
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)  # filters don't use the current time
_NOBODY = Envelope("", "")  # filters don't use the envelope


def condition(query: Form) -> Test:
    """Return the query as a Sieve test."""
    return _all(list(_tests(query)))


def _tests(query: Form) -> Iterator[Test]:
    """Yield a Sieve test for each condition of a query."""
    for name, fields in FIELDS.items():
        if name in query:
            yield _contains(Test("header"), texts(*fields), query[name])
    if "text" in query:
        yield _contains(Test("body", (Tag("text"),)), None, query["text"])
    if "hasAttachment" in query:
        there = Test("hasattachment")
        yield there if query["hasAttachment"] else Test("not", tests=(there,))
    if "size" in query:
        size = query["size"]
        yield Test("size", (Tag("over" if size >= 0 else "under"), Number(abs(size))))
    if header := query.get("header"):
        if header.get("value") is None:
            yield Test("exists", (Text(header["key"]),))
        else:
            yield _contains(Test("header"), Text(header["key"]), header["value"])
    if regex := query.get("regex"):
        yield _expressed(regex)
    yield from _groups(query)


def _groups(query: Form) -> Iterator[Test]:
    """Yield a Sieve test for each nested query."""
    for one in required_of(query):
        yield condition(one)
    if some := query.get("any"):
        yield _one_of([condition(one) for one in some])
    for one in query.get("not", ()):
        yield Test("not", tests=(condition(one),))


def _contains(test: Test, where: Argument | None, value: str) -> Test:
    """Return a `:contains` test that ignores case."""
    how = (Tag("contains"), Tag("comparator"), Text(PLAIN))
    which = (where,) if where is not None else ()
    return Test(test.name, (*test.arguments, *how, *which, Text(value)))


def _expressed(regex: Form) -> Test:
    """Return a `:regex` test of a header field or of the text."""
    how, pattern = Tag("regex"), Text(regex["pattern"])
    if regex.get("key") is None:
        return Test("body", (Tag("text"), how, pattern))
    return Test("header", (how, Text(regex["key"]), pattern))


def _all(tests: Sequence[Test]) -> Test:
    if not tests:
        return Test("true")
    return tests[0] if len(tests) == 1 else Test("allof", tests=tuple(tests))


def _one_of(tests: Sequence[Test]) -> Test:
    return tests[0] if len(tests) == 1 else Test("anyof", tests=tuple(tests))


def required_of(query: Form) -> list[Form]:
    """Return the nested queries that must hold: the parsed search text and `all`."""
    text = query.get("query")
    return [*([text["tests"]] if text else []), *query.get("all", ())]


def inner_of(query: Form) -> list[Form]:
    """Return all nested queries of a query."""
    return [*required_of(query), *query.get("any", ()), *query.get("not", ())]


def depth(query: Form) -> int:
    """Return the levels of nested queries in a query; 0 if there are none."""
    return max((1 + depth(one) for one in inner_of(query)), default=0)


def size_of(query: Form) -> int:
    """Return the number of conditions and queries in a query."""
    return 1 + len(query) + sum(map(size_of, inner_of(query)))


@dataclass(frozen=True, slots=True)
class Names:
    """The mailbox paths and the reply interval that a script is written with."""

    mailboxes: Mapping[int, str]  # paths by ID; INBOX replaces a missing mailbox
    interval: int = 86_400  # seconds between two replies to a sender


def tree(key: int, query: Form, action: Form, names: Names) -> Tree:
    """Return a filter as a script. See `actions_without_sieve` for what it can't express."""
    test, commands = condition(query), tuple(_commands(key, action, names))
    needed = sorted({*_needed_by_test(test), *(one for each in commands for one in _needs(each))})
    inner = commands if test.name == "true" else (Command("if", (), (test,), commands),)
    return (Command("require", (texts(*needed),)), *inner) if needed else inner


def beyond(action: Form) -> dict[str, Sequence[Any]]:
    """Return the parts of an action that Sieve can't express: URL targets and the webhook."""
    elsewhere = [one for one in action.get("targets", ()) if "://" in one]
    hooks = [action["webhook"]] if "webhook" in action else []
    return {"targets": elsewhere, "webhook": hooks}


def _commands(key: int, action: Form, names: Names) -> Iterator[Command]:
    """Yield the commands of an action."""
    flags = {"\\Seen": action.get("seen"), "\\Flagged": action.get("flag")}
    labels, removed = list(action.get("labels", ())), list(action.get("removeLabels", ()))
    on = [*(flag for flag, said in flags.items() if said), *labels]
    off = [*(flag for flag, said in flags.items() if said is False), *removed]
    if on:
        yield Command("addflag", (texts(*on),))
    if off:
        yield Command("removeflag", (texts(*off),))
    for target in action.get("targets", ()):
        if "://" not in target:
            yield Command("redirect", (Tag("copy"), Text(target)))
    if reply := action.get("reply"):
        yield _answer(key, reply, names)
    for box in () if action.get("delete") else action.get("copyTo", ()):
        yield Command("fileinto", (Tag("copy"), Text(names.mailboxes.get(box, "INBOX"))))
    yield from _place(action, names)
    if action.get("stop"):
        yield Command("stop")


def _place(action: Form, names: Names) -> Iterator[Command]:
    """Yield the command that stores or discards the message."""
    if action.get("delete"):
        yield Command("discard")
    elif action.get("spam"):
        yield Command("fileinto", (Tag("specialuse"), Text("\\Junk"), Text("INBOX")))
    elif "mailbox" in action:
        yield Command("fileinto", (Text(names.mailboxes.get(action["mailbox"], "INBOX")),))
    elif action.get("spam") is False:
        yield Command("fileinto", (Text("INBOX"),))


def _answer(key: int, reply: Form, names: Names) -> Command:
    """Return the `vacation` command of a reply."""
    seconds = min(names.interval, VACATION)
    said: list[Argument] = [Tag("seconds"), Number(seconds), Tag("handle"), Text(handle(key))]
    if reply["subject"]:
        said += [Tag("subject"), Text(reply["subject"])]
    if reply["html"]:
        said.append(Tag("mime"))
    return Command("vacation", (*said, Text(entity(reply["text"], reply["html"]))))


def handle(key: int) -> str:
    """Return the `:handle` under which the senders that a filter replied to are remembered."""
    return f"filter:{key}"


def entity(text: str, html: str) -> str:
    """Return the body of a reply: the text, or a MIME entity if there is HTML."""
    if not html:
        return text
    if not text:
        return f"{_headed('html')}{html}"
    border = "=_alternative"
    while border in text or border in html:
        border += "="
    parts = "".join(
        f"--{border}\r\n{_headed(kind)}{one}\r\n" for kind, one in (("plain", text), ("html", html))
    )
    return (
        f'Content-Type: multipart/alternative; boundary="{border}"\r\n\r\n{parts}--{border}--\r\n'
    )


def _headed(kind: str) -> str:
    """Return the MIME header of a text part."""
    encoding = "Content-Transfer-Encoding: 8bit"
    return f"Content-Type: text/{kind}; charset=utf-8\r\n{encoding}\r\n\r\n"


_OF_COMMAND = {
    "addflag": "imap4flags",
    "fileinto": "fileinto",
    "removeflag": "imap4flags",
    "vacation": "vacation-seconds",
}
_OF_TAG = {"copy": "copy", "specialuse": "special-use"}
_OF_TEST = {"body": "body", "hasattachment": _ATTACHMENTS}


def _needs(command: Command) -> Iterator[str]:
    """Yield the Sieve extensions of a command."""
    if command.name in _OF_COMMAND:
        yield _OF_COMMAND[command.name]
    for one in command.arguments:
        if isinstance(one, Tag) and one.name in _OF_TAG:
            yield _OF_TAG[one.name]


def _needed_by_test(test: Test) -> Iterator[str]:
    """Yield the Sieve extensions of a test and the tests in it."""
    if test.name in _OF_TEST:
        yield _OF_TEST[test.name]
    tags = {one.name for one in test.arguments if isinstance(one, Tag)}
    if "comparator" in tags:
        yield f"comparator-{PLAIN}"
    if "regex" in tags:
        yield "regex"
    for inner in test.tests:
        yield from _needed_by_test(inner)


@lru_cache(PROGRAMS)
def _kept(written: bytes) -> Program:
    """Return the program of a query from the cache."""
    return _program(written)


def _ready(written: bytes) -> tuple[Program, int]:
    """Return the program of a query and the steps that compiling it counts as."""
    if len(written) <= SMALL:
        return _kept(written), 0
    return _program(written), len(written) // PER_STEP


def _program(written: bytes) -> Program:
    """Compile a query to a program that discards matching messages."""
    test = condition(orjson.loads(written))
    needed = sorted(set(_needed_by_test(test)))
    first = (Command("require", (texts(*needed),)),) if needed else ()
    return sieve.checked((*first, Command("if", (), (test,), (Command("discard"),))))


@dataclass(frozen=True, slots=True)
class Rule:
    """A filter in the form that is run."""

    id: int
    query: Form
    action: Form
    targets: Sequence[Target] = ()  # targets of the action, with secret URLs


@dataclass
class Looked:
    """A message that filters test. Its decoded parts are shared by all filters."""

    message: sieve.Message
    _tests: sieve.Tests = field(init=False)

    def __post_init__(self) -> None:
        self._tests = sieve.Tests(self.message, _NOBODY, Circumstances(_NEVER, traced=False))

    def fits(self, query: Form) -> tuple[bool, int]:
        """Return (query matches, steps used). A query beyond the step limit does not match."""
        written = orjson.dumps(query, option=orjson.OPT_SORT_KEYS)
        program, steps = _ready(written)
        try:
            fits, more = self._tests.holds(program)
        except RunError:
            return False, limits.STEPS
        return fits, steps + more


@dataclass(frozen=True, slots=True)
class Followed:
    """A filter with the result of its query."""

    rule: Rule
    fits: bool
    acts: tuple[str, ...] = ()  # action fields with an effect, in the order of ACTION_NAMES


def followed(rules: Sequence[Rule], looked: Looked, *, throughout: bool = False) -> list[Followed]:
    """Evaluate filters in order; with `after_stop`, also those after a filter with `stop`."""
    found: list[Followed] = []
    said: dict[str, Any] = {}
    ended, spent = False, 0
    for rule in rules:
        if spent > STEPS or (ended and not throughout):
            break
        fits, steps = looked.fits(rule.query)
        spent += steps
        acts: list[str] = []
        if fits and not ended:
            acts = [name for name in ACTIONS if name in rule.action and name not in said]
            said |= {name: rule.action[name] for name in acts if name in DECIDED}
            ended = bool(rule.action.get("stop"))
        found.append(Followed(rule, fits, tuple(acts)))
    hidden = _hidden(said)
    return [_without(one, hidden) for one in found] if hidden else found


def _hidden(said: Form) -> frozenset[str]:
    """Return the actions that have no effect because of an earlier decision."""
    if said.get("delete"):
        return frozenset({"spam", "mailbox", "copyTo"})
    return frozenset({"mailbox"}) if said.get("spam") else frozenset()


def _without(one: Followed, hidden: frozenset[str]) -> Followed:
    """Return the evaluated filter without some of its actions."""
    return Followed(one.rule, one.fits, tuple(name for name in one.acts if name not in hidden))


def decided(rules: Sequence[Rule], looked: Looked) -> Decision:
    """Return what these filters do with a message.

    `mailbox_id` is set beside `delete` and `spam`, which have precedence. It is used if the account
    keeps no spam in Junk.
    """
    fit = [one for one in followed(rules, looked) if one.fits]
    said: dict[str, Any] = {}
    for one in fit:
        for name in DECIDED:
            if name in one.rule.action:
                said.setdefault(name, one.rule.action[name])
    removed = _each(fit, "removeLabels")
    labels = [name for name in _each(fit, "labels") if name not in removed]
    hooks = [one.rule.action["webhook"] for one in fit if "webhook" in one.rule.action]
    targets: dict[str, Target] = {}
    for to in (to for one in fit for to in one.rule.targets):
        targets.setdefault(_alike(to), to)
    return Decision(
        delete=bool(said.get("delete")),
        spam=said.get("spam"),
        mailbox_id=said.get("mailbox"),
        copies=() if said.get("delete") else _each(fit, "copyTo")[:PLACES],
        seen=bool(said.get("seen")),
        flagged=bool(said.get("flag")),
        labels=labels[:PLACES],
        removed=removed,
        targets=list(targets.values()),
        replies=[_reply(one.rule) for one in fit if "reply" in one.rule.action],
        webhooks=list(dict.fromkeys(hooks)),
        matched=[one.rule.id for one in fit],
    )


def _alike(to: Target) -> str:
    """Return the target in the form that duplicates are found by."""
    return to.whole if "://" in to.whole else to.whole.casefold()


def _each(fit: Sequence[Followed], name: str) -> list[Any]:
    """Return the values that filters set for an action, each once."""
    return list(dict.fromkeys(it for one in fit for it in one.rule.action.get(name, ())))


def _reply(rule: Rule) -> Reply:
    """Return the reply of a filter."""
    said = rule.action["reply"]
    return Reply(rule.id, said["subject"], said["text"], said["html"])
