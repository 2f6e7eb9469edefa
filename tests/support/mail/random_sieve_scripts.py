"""Random scripts: trees of any shape, token soups, and such as mean something."""

from collections.abc import Collection, Sequence
from random import Random

from hypothesis import strategies as some

from mail.sieve import EXTENSIONS
from mail.sieve.execution.signatures import ArgumentType, CallSignature, TagOption
from mail.sieve.registry import COMMANDS, TESTS
from mail.sieve.syntax.syntax_tree import (
    Argument,
    CommandNode,
    NumberNode,
    StringListNode,
    StringNode,
    TagNode,
    TestNode,
    Tree,
)

NAMES = some.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name != "text")
TEXT = some.builds(
    StringNode, some.text(some.characters(exclude_characters="\0", exclude_categories=["Cs"]))
)
ARGUMENTS = some.lists(
    TEXT
    | some.builds(StringListNode, some.lists(TEXT, min_size=1, max_size=3).map(tuple))
    | some.builds(NumberNode, some.integers(0, 2**63 - 1))
    | some.builds(TagNode, NAMES),
    max_size=4,
).map(tuple)


def _test_of(inner: some.SearchStrategy[TestNode]) -> some.SearchStrategy[TestNode]:
    return some.builds(TestNode, NAMES, ARGUMENTS, some.lists(inner, max_size=3).map(tuple))


TREE_TESTS = some.recursive(some.builds(TestNode, NAMES, ARGUMENTS), _test_of, max_leaves=5)


def _command_of(inner: some.SearchStrategy[CommandNode]) -> some.SearchStrategy[CommandNode]:
    blocks = some.none() | some.lists(inner, max_size=3).map(tuple)
    tests = some.lists(TREE_TESTS, max_size=2).map(tuple)
    return some.builds(CommandNode, NAMES, ARGUMENTS, tests, blocks)


TREES = some.lists(
    some.recursive(some.builds(CommandNode, NAMES, ARGUMENTS), _command_of, max_leaves=6),
    max_size=4,
).map(tuple)

_TAGS = sorted(
    {f":{option.name}" for one in (*COMMANDS.values(), *TESTS.values()) for option in one.options}
)
_STRINGS = [
    '"a"', '"*"', '"${1}"', '"${a}"', '"${a}${a}${a}"', '"subject"', '"from"', '"i;octet"',
    '"i;ascii-numeric"', '"ge"', '["x", "y"]', '"(a|b)*c"', '"\\\\Seen"', '"a@example.org"',
    '"${unicode: 61}"', '"${hex: ff}"', 'text:\nx\n.\n', '"date"', '"mailto:a@b.cd"', '"?*?*?*?"',
]  # fmt: skip
_REQUIRE = "require [" + ", ".join(f'"{name}"' for name in EXTENSIONS) + "];\n"
WORDS = [
    *COMMANDS, *TESTS, "elsif", "else", *_TAGS, *_STRINGS, "(", ")", "{", "}", "[", "]", ",", ";",
    "0", "1", "30", "1K", "9999999999", "\n", "#x\n", "/* x */",
]  # fmt: skip
SOUPS = some.lists(some.sampled_from(WORDS), max_size=40).map(
    lambda words: _REQUIRE + " ".join(words)
)

FIELDS = ["content-type", "subject", "X-Number", "x-many", "x-none", "from", "to", "cc"]
EDITED = ["x-many", "subject", "x-new", "X-Number"]
DATED = ["2026", "3", "*-03-*", "22", "Wed*", "22:30:00", "01:30:00", "-0300"]
ADDRESSED = ["from", "to", "cc", "reply-to"]
KEYS = [
    "text", "plain", "b", "a", "7", "07", "one", "TWO", "*", "t*", "on?", "*e?", "ada*", "*@*",
    "*.org", "bob", "list",
    "", "example.com", "ada@example.org", "Hello*", "hello world", "w", "o*o", "2", "3", "1", "0",
    "${1}", "${v}", "x${2}y", "${0}",
]  # fmt: skip
EXPRESSIONS = [
    "a",
    "^7$",
    "(.)(n|h)",
    "[a-z]+@(.*)",
    "o.*o",
    "^(t.*)$",
    "^$",
    "x|w",
    "[[:digit:]]+",
]
MAILBOXES = ["A", "B", "A/B", "INBOX", "x${1}", "y ${v}"]
FLAGS = ["\\Seen", "\\flagged", "Work", "work", "$Junk a", "${v}", "", "\\Answered b"]
_SAMPLES: dict[str, list[str]] = {  # by the name of the argument
    "address": ["one@example.net", "two@example.net"],
    "comparator": ["i;octet", "i;ascii-casemap", "i;ascii-numeric"],
    "count": ["gt", "ge", "lt", "le", "eq", "ne"],
    "flags": FLAGS,
    "list": FLAGS,
    "keys": KEYS,
    "mailbox": MAILBOXES,
    "mailboxes": ["INBOX", "Old"],
    "fcc": MAILBOXES,
    "names": FIELDS,
    "name": ["v", "w", "V"],
    "variable": ["v", "w"],
    "variables": ["v", "w"],
    "parts": ["from", "to"],
    "reason": ["away", "no ${v}"],
    "message": ["word ${v}"],
    "source": ["${v}", "a", "7", "${1}", "Hello World", ""],
    "value": ["${v}", "a7", "${1}x", "Hello World", "", "${w}${v}"],
    "from": ["bob@example.com"],
    "addresses": ["bob@example.com"],
    "content": ["text", "text/html", "", "application/x-thing"],
    "specialuse": ["\\Junk"],
    "uses": ["\\Junk", "\\Sent"],
    "capabilities": ["copy", "x-none"],
    "param": ["charset", "boundary", "none"],
    "part": ["year", "weekday", "date", "time", "hour", "zone", "iso8601", "std11", "julian"],
    "zone": ["+0200", "-0930"],
    "importance": ["1", "2", "3"],
    "options": ["x=y"],
    "method": ["mailto:one@example.net", "mailto:two@example.net?subject=x&body=y%20z"],
    "uris": ["mailto:one@example.net", "x:y"],
    "uri": ["mailto:one@example.net"],
    "capability": ["online"],
    "script": ["none"],
    "item": ["name", "phase"],
    "uniqueid": ["${v}", "x"],
    "handle": ["x", "y"],
    "header": ["subject", "x-none"],
}
_NUMBERS = (0, 1, 2, 3, 100, 1000)
_WRAPS = ("allof", "anyof", "not")
_SPECIAL = ("if", "require", "error", "foreverypart", "break", "extracttext")


class Writer:
    """Writes scripts that most often compile, by chance, each seed the same one."""

    def __init__(
        self,
        seed: int,
        *,
        without: Collection[str] = (),  # commands and tests
        leave_out: Collection[str] = (),  # tags
        extensions: Sequence[str] = EXTENSIONS,
    ) -> None:
        self.chance = Random(seed)  # noqa: S311
        self.last: set[str] = set()  # the tags of the call that is written
        self.leave_out, self.extensions = leave_out, extensions
        tests = [one for name, one in TESTS.items() if name not in (*without, *_WRAPS)]
        plain = [one for name, one in COMMANDS.items() if name not in (*without, *_SPECIAL)]
        self.tests, self.plain = ([one for one in all_ if self.has(one)] for all_ in (tests, plain))
        self.plain += [one for one in self.plain if one.name in ("fileinto", "redirect")] * 2

    def script(self) -> Tree:
        required = StringListNode(tuple(StringNode(name) for name in self.extensions))
        return (CommandNode("require", (required,)), *self.block(0))

    def block(self, depth: int) -> Tree:
        found: list[CommandNode] = []
        for _ in range(self.chance.randint(1, 5 - depth)):
            if depth == 2 or self.chance.random() < 0.6:
                signature = self.chance.choice(self.plain)
                found.append(CommandNode(signature.name, self.arguments(signature)))
                continue
            if "foreverypart" in self.extensions and self.chance.random() < 0.3:
                loop = (*self.block(depth + 1), CommandNode("extracttext", (StringNode("v"),)))
                leave = CommandNode("if", (), (self.test(2),), (CommandNode("break"),))
                found.append(CommandNode("foreverypart", (), (), (leave, *loop)))
                continue
            found.append(CommandNode("if", (), (self.test(0),), self.block(depth + 1)))
            if self.chance.random() < 0.4:
                found.append(CommandNode("elsif", (), (self.test(0),), self.block(depth + 1)))
            if self.chance.random() < 0.5:
                found.append(CommandNode("else", (), (), self.block(depth + 1)))
        return tuple(found)

    def test(self, depth: int) -> TestNode:
        if depth == 3 or self.chance.random() < 0.6:
            signature = self.chance.choice(self.tests)
            return TestNode(signature.name, self.arguments(signature))
        name = self.chance.choice(_WRAPS)
        many = 1 if name == "not" else self.chance.randint(1, 3)
        return TestNode(name, (), tuple(self.test(depth + 1) for _ in range(many)))

    def chosen(self, signature: CallSignature) -> dict[str, TagOption]:
        """Tags of a call by their groups, with what they need."""
        able = {option.name: option for option in signature.options if self.has(option)}
        chosen: dict[str, TagOption] = {}
        for option in self.chance.sample(
            [*able.values()], min(len(able), self.chance.choice([0, 1, 1, 2, 3]))
        ):
            chosen.setdefault(option.group or option.name, option)
        if signature.name == "size":
            chosen.setdefault("relation", able["over"])
        if "last" in chosen and "index" not in chosen:
            del chosen["last"]
        if {"aspect", "anychild"} & set(chosen):
            chosen["mime"] = able["mime"]
        if "fcc" in able and {"flags", "create", "specialuse"} & set(chosen):
            chosen["fcc"] = able["fcc"]
        kind = chosen["match"].name if "match" in chosen else "is"
        if kind in ("contains", "matches"):
            chosen.pop("comparator", None)
        elif kind in ("value", "regex"):  # Pigeonhole has other defaults there than RFC 5231
            chosen["comparator"] = able["comparator"]
        return chosen

    def arguments(self, signature: CallSignature) -> tuple[Argument, ...]:
        chosen = self.chosen(signature)
        kind = chosen["match"].name if "match" in chosen else "is"
        out: list[Argument] = []
        for option in chosen.values():
            out.append(TagNode(option.name))
            if option.value_type:
                name = "count" if option.group == "match" else option.name
                out.append(self.value(option.value_type, signature.name, name, kind))
        self.last = set(chosen)
        full = self.chance.random() < 0.5
        out += [
            self.value(given.argument_type, signature.name, given.name, kind)
            for given in signature.positional
            if full or not given.is_optional
        ]
        return tuple(out)

    def has(self, what: TagOption | CallSignature) -> bool:
        """Whether scripts may use this."""
        needed = what.extension or ()
        needed = (needed,) if isinstance(needed, str) else needed
        return what.name not in self.leave_out and set(needed) <= set(self.extensions)

    def value(self, wanted: ArgumentType, owner: str, name: str, kind: str) -> Argument:
        """An argument by its name; `kind` is how it is compared."""
        if wanted is ArgumentType.NUMBER:
            return NumberNode(self.chance.choice(_NUMBERS) + (name == "index"))
        samples = self.special(owner, name, kind) or _SAMPLES.get(name, KEYS)
        if wanted is ArgumentType.STRING or self.chance.random() < 0.5:
            return StringNode(self.chance.choice(samples))
        many = self.chance.randint(1, 3)
        return StringListNode(tuple(StringNode(self.chance.choice(samples)) for _ in range(many)))

    def special(self, owner: str, name: str, kind: str) -> Sequence[str]:
        """What an argument is where its name alone does not say."""
        if owner in ("redirect", "fileinto") and name in ("address", "mailbox"):
            # In Pigeonhole what is repeated, with :copy at first, keeps the message too.
            return _SAMPLES[name][::2] if "copy" in self.last else _SAMPLES[name][1::2]
        by_kind: dict[tuple[str, str], Sequence[str]] = {
            ("regex", "keys"): EXPRESSIONS,
            ("regex", "list"): EXPRESSIONS,
            ("regex", "comparator"): _SAMPLES["comparator"][:2],
            # There letters have another order to signs, and patterns are no lists of flags.
            ("value", "list"): ["Work", "b", ""],
            ("matches", "list"): ["Work", "b", ""],
        }
        by_owner: dict[tuple[str, str], Sequence[str]] = {
            ("address", "names"): ADDRESSED,
            ("date", "name"): ["date"],
            ("date", "keys"): DATED,
            ("global", "names"): ["v"],
            ("addheader", "name"): EDITED,
            ("deleteheader", "name"): EDITED,
        }
        return by_kind.get((kind, name)) or by_owner.get((owner, name), ())


SCRIPTS = some.integers(0, 2**32).map(lambda seed: Writer(seed).script())
