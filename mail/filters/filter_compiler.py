"""Filters: forms that become Sieve, and what those of an account say of a message together.

A query is a mapping of what must hold, all of it; an action one of what is done. Both have the
names of the API and hold only what is said:

    {"from": "ada", "any": [{"subject": "a"}, {"size": 1000}], "not": [{"header": {"key": "X"}}]}
    {"mailbox": 7, "labels": ["news"], "seen": True}

A search text, which is one more test, is stored with the query that it stands for:

    {"query": {"text": "subject:a OR larger:1k", "tests": {"any": [{"subject": "a"}, …]}}}

Filters run in their order. Of `seen`, `flag`, `delete`, `spam` and `mailbox` the first filter
that fits and names it decides, also where it says False; of all else each adds its own, and what
one of them removes is not set. One that says `stop` is the last.
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

DECIDED = ("delete", "spam", "mailbox", "seen", "flag")  # by the first that names it
ACTIONS = (
    *DECIDED, "copyTo", "labels", "removeLabels", "targets", "reply", "webhook", "stop",
)  # fmt: skip
GROUPS = ("all", "any", "not")
NESTED = 5  # queries in queries
STEPS = 40_000  # of the interpreter, for all filters of an account and one message
PLACES = 32  # mailboxes of one message, and keywords that it gets by filters
PROGRAMS = 1024  # that are kept,
SMALL = 2048  # of queries with so many bytes
PER_STEP = 8  # bytes of a longer one, which is read anew each time
VACATION = 90 * 86_400  # seconds, the longest that Sieve remembers whom it has answered
_ATTACHMENTS = "vnd.merganser.attachments"
FIELDS = {"from": ("from", "sender"), "to": ("to", "cc"), "subject": ("subject",)}
FIELDS["listId"] = ("list-id",)
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)  # filters do not ask what time it is
_NOBODY = Envelope("", "")  # nor about the envelope


# ---------------------------------------------------------------- what is asked


def condition(query: Form) -> Test:
    """The query as a test of Sieve."""
    return _all(list(_tests(query)))


def _tests(query: Form) -> Iterator[Test]:
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
    for one in required_of(query):
        yield condition(one)
    if some := query.get("any"):
        yield _one_of([condition(one) for one in some])
    for one in query.get("not", ()):
        yield Test("not", tests=(condition(one),))


def _contains(test: Test, where: Argument | None, value: str) -> Test:
    how = (Tag("contains"), Tag("comparator"), Text(PLAIN))
    which = (where,) if where is not None else ()
    return Test(test.name, (*test.arguments, *how, *which, Text(value)))


def _expressed(regex: Form) -> Test:
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
    """The queries in a query that must hold, too: that of its search text, and `all`."""
    text = query.get("query")
    return [*([text["tests"]] if text else []), *query.get("all", ())]


def inner_of(query: Form) -> list[Form]:
    """The queries that stand in a query."""
    return [*required_of(query), *query.get("any", ()), *query.get("not", ())]


def depth(query: Form) -> int:
    """How many queries stand in each other, beyond the first."""
    return max((1 + depth(one) for one in inner_of(query)), default=0)


def size_of(query: Form) -> int:
    """How many tests and queries it is made of."""
    return 1 + len(query) + sum(map(size_of, inner_of(query)))


# ---------------------------------------------------------------- as a script


@dataclass(frozen=True, slots=True)
class Names:
    """What a script calls things by."""

    mailboxes: Mapping[int, str]  # paths; of one that is not there mail goes to INBOX
    interval: int = 86_400  # seconds between two answers to a sender


def tree(key: int, query: Form, action: Form, names: Names) -> Tree:
    """The whole filter as a script. What Sieve has no words for is not in it: `beyond`."""
    test, commands = condition(query), tuple(_commands(key, action, names))
    needed = sorted({*_needed_by_test(test), *(one for each in commands for one in _needs(each))})
    inner = commands if test.name == "true" else (Command("if", (), (test,), commands),)
    return (Command("require", (texts(*needed),)), *inner) if needed else inner


def beyond(action: Form) -> dict[str, Sequence[Any]]:
    """What of an action no script says: targets that are no addresses, and the webhook."""
    elsewhere = [one for one in action.get("targets", ()) if "://" in one]
    hooks = [action["webhook"]] if "webhook" in action else []
    return {"targets": elsewhere, "webhook": hooks}


def _commands(key: int, action: Form, names: Names) -> Iterator[Command]:
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
    if action.get("delete"):
        yield Command("discard")
    elif action.get("spam"):
        yield Command("fileinto", (Tag("specialuse"), Text("\\Junk"), Text("INBOX")))
    elif "mailbox" in action:
        yield Command("fileinto", (Text(names.mailboxes.get(action["mailbox"], "INBOX")),))
    elif action.get("spam") is False:
        yield Command("fileinto", (Text("INBOX"),))


def _answer(key: int, reply: Form, names: Names) -> Command:
    seconds = min(names.interval, VACATION)
    said: list[Argument] = [Tag("seconds"), Number(seconds), Tag("handle"), Text(handle(key))]
    if reply["subject"]:
        said += [Tag("subject"), Text(reply["subject"])]
    if reply["html"]:
        said.append(Tag("mime"))
    return Command("vacation", (*said, Text(entity(reply["text"], reply["html"]))))


def handle(key: int) -> str:
    """By what is remembered whom a filter has answered."""
    return f"filter:{key}"


def entity(text: str, html: str) -> str:
    """What is answered: the text, or where there is HTML a MIME entity."""
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
    """The extensions of a command."""
    if command.name in _OF_COMMAND:
        yield _OF_COMMAND[command.name]
    for one in command.arguments:
        if isinstance(one, Tag) and one.name in _OF_TAG:
            yield _OF_TAG[one.name]


def _needed_by_test(test: Test) -> Iterator[str]:
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
    return _program(written)


def _ready(written: bytes) -> tuple[Program, int]:
    """The program of a query, and what it took to have it."""
    if len(written) <= SMALL:
        return _kept(written), 0
    return _program(written), len(written) // PER_STEP


def _program(written: bytes) -> Program:
    """The query alone, as a program that discards what fits."""
    test = condition(orjson.loads(written))
    needed = sorted(set(_needed_by_test(test)))
    first = (Command("require", (texts(*needed),)),) if needed else ()
    return sieve.checked((*first, Command("if", (), (test,), (Command("discard"),))))


# ---------------------------------------------------------------- what fits


@dataclass(frozen=True, slots=True)
class Rule:
    """A filter, as it is run."""

    id: int
    query: Form
    action: Form
    targets: Sequence[Target] = ()  # those of the action, with their passwords


@dataclass
class Looked:
    """A message that filters look at: what is decoded of it is so once, for all of them."""

    message: sieve.Message
    _tests: sieve.Tests = field(init=False)

    def __post_init__(self) -> None:
        self._tests = sieve.Tests(self.message, _NOBODY, Circumstances(_NEVER, traced=False))

    def fits(self, query: Form) -> tuple[bool, int]:
        """Whether the query holds, and how many steps that took; what takes too long does not."""
        written = orjson.dumps(query, option=orjson.OPT_SORT_KEYS)
        program, steps = _ready(written)
        try:
            fits, more = self._tests.holds(program)
        except RunError:
            return False, limits.STEPS
        return fits, steps + more


@dataclass(frozen=True, slots=True)
class Followed:
    """A filter, and what came of it."""

    rule: Rule
    fits: bool
    acts: tuple[str, ...] = ()  # those parts of its action that count, in the order of ACTIONS


def followed(rules: Sequence[Rule], looked: Looked, *, throughout: bool = False) -> list[Followed]:
    """What each of these filters does, in their order; `throughout`: also those behind a stop."""
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
    """What has no effect beside that which comes before it."""
    if said.get("delete"):
        return frozenset({"spam", "mailbox", "copyTo"})
    return frozenset({"mailbox"}) if said.get("spam") else frozenset()


def _without(one: Followed, hidden: frozenset[str]) -> Followed:
    return Followed(one.rule, one.fits, tuple(name for name in one.acts if name not in hidden))


def decided(rules: Sequence[Rule], looked: Looked) -> Decision:
    """What these filters, in their order, say of a message.

    A mailbox stands beside `delete` and `spam`, which come before it: where the account wants
    nothing in Junk, it is there that the message goes.
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
    return to.whole if "://" in to.whole else to.whole.casefold()


def _each(fit: Sequence[Followed], name: str) -> list[Any]:
    """What these filters name, each once."""
    return list(dict.fromkeys(it for one in fit for it in one.rule.action.get(name, ())))


def _reply(rule: Rule) -> Reply:
    said = rule.action["reply"]
    return Reply(rule.id, said["subject"], said["text"], said["html"])
