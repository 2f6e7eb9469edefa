"""Random scripts: trees of any shape, token soups, and such as mean something."""

from collections.abc import Sequence

from hypothesis import strategies as some

from mail.sieve import EXTENSIONS
from mail.sieve.families import COMMANDS, TESTS
from mail.sieve.signatures import Kind, Option, Signature
from mail.sieve.tree import Argument, Command, Number, Tag, Test, Text, Texts, Tree

NAMES = some.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name != "text")
TEXT = some.builds(
    Text, some.text(some.characters(exclude_characters="\0", exclude_categories=["Cs"]))
)
ARGUMENTS = some.lists(
    TEXT
    | some.builds(Texts, some.lists(TEXT, min_size=1, max_size=3).map(tuple))
    | some.builds(Number, some.integers(0, 2**63 - 1))
    | some.builds(Tag, NAMES),
    max_size=4,
).map(tuple)


def _test_of(inner: some.SearchStrategy[Test]) -> some.SearchStrategy[Test]:
    return some.builds(Test, NAMES, ARGUMENTS, some.lists(inner, max_size=3).map(tuple))


TREE_TESTS = some.recursive(some.builds(Test, NAMES, ARGUMENTS), _test_of, max_leaves=5)


def _command_of(inner: some.SearchStrategy[Command]) -> some.SearchStrategy[Command]:
    blocks = some.none() | some.lists(inner, max_size=3).map(tuple)
    tests = some.lists(TREE_TESTS, max_size=2).map(tuple)
    return some.builds(Command, NAMES, ARGUMENTS, tests, blocks)


TREES = some.lists(
    some.recursive(some.builds(Command, NAMES, ARGUMENTS), _command_of, max_leaves=6), max_size=4
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

FIELDS = ["subject", "X-Number", "x-many", "x-none", "from", "to", "cc"]
ADDRESSED = ["from", "to", "cc", "reply-to"]
KEYS = [
    "a", "7", "07", "one", "TWO", "*", "t*", "?n*", "*e?", "ada*", "*@*", "*.org", "bob", "list",
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
    "address": ["one@example.net", "two@example.net", "Two@example.net"],
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
}
_NUMBERS = some.sampled_from([0, 1, 2, 3, 100, 1000])


@some.composite
def _text(draw: some.DrawFn, owner: str, name: str, kind: str) -> str:
    """A string for an argument, by its name; `kind` is how it is compared."""
    samples = _SAMPLES.get(name, KEYS)
    if owner == "address" and name == "names":
        samples = ADDRESSED
    if kind == "regex" and name == "keys":
        samples = EXPRESSIONS
    return draw(some.sampled_from(samples))


@some.composite
def called(
    draw: some.DrawFn, signature: Signature, leave_out: frozenset[str]
) -> tuple[str, list[Argument]]:
    """A call of a command or a test with arguments of the right kinds."""
    chosen: dict[str, Option] = {}
    able = [option for option in signature.options if option.name not in leave_out]
    for option in draw(some.lists(some.sampled_from(able), max_size=3)) if able else ():
        chosen.setdefault(option.group or option.name, option)
    if signature.name == "size":
        chosen.setdefault("relation", able[0])
    if "last" in chosen and "index" not in chosen:
        del chosen["last"]
    kind = chosen["match"].name if "match" in chosen else "is"
    if kind in ("contains", "matches", "regex"):
        chosen.pop("comparator", None)
    out: list[Argument] = []

    def value(wanted: Kind, name: str) -> Argument:
        if wanted is Kind.NUMBER:
            return Number(draw(_NUMBERS) + (name == "index"))
        texts = _text(signature.name, name, kind).map(Text)
        if wanted is Kind.STRING or draw(some.booleans()):
            return draw(texts)
        return Texts(tuple(draw(some.lists(texts, min_size=1, max_size=3))))

    for option in chosen.values():
        out.append(Tag(option.name))
        if option.value:
            is_relation = option.group == "match"
            out.append(value(option.value, "count" if is_relation else option.name))
    has_optional = draw(some.booleans())
    out += [
        value(one.kind, one.name) for one in signature.given if has_optional or not one.optional
    ]
    return signature.name, out


@some.composite
def scripts(
    draw: some.DrawFn,
    *,
    without: frozenset[str] = frozenset(),
    leave_out: frozenset[str] = frozenset(),
    extensions: Sequence[str] = EXTENSIONS,
) -> Tree:
    """A script that most often compiles, `without` some commands and tests, and some tags."""
    wraps = {"not", "allof", "anyof"}
    tests = [one for name, one in TESTS.items() if name not in without | wraps]
    special = {"if", "require", "error", "foreverypart"}
    plain = [one for name, one in COMMANDS.items() if name not in without | special]

    def test(depth: int) -> Test:
        name = draw(some.sampled_from(["", "", "", *sorted(wraps)])) if depth < 3 else ""
        if not name:
            name, arguments = draw(called(draw(some.sampled_from(tests)), leave_out))
            return Test(name, tuple(arguments))
        many = 1 if name == "not" else draw(some.integers(1, 3))
        return Test(name, (), tuple(test(depth + 1) for _ in range(many)))

    def block(depth: int) -> Tree:
        found: list[Command] = []
        for _ in range(draw(some.integers(1, 4 - depth))):
            if depth < 2 and draw(some.booleans()):
                found.append(Command("if", (), (test(0),), block(depth + 1)))
                if draw(some.booleans()):
                    found.append(Command("elsif", (), (test(0),), block(depth + 1)))
                if draw(some.booleans()):
                    found.append(Command("else", (), (), block(depth + 1)))
            else:
                name, arguments = draw(called(draw(some.sampled_from(plain)), leave_out))
                found.append(Command(name, tuple(arguments)))
        return tuple(found)

    required = Texts(tuple(Text(name) for name in extensions))
    return (Command("require", (required,)), *block(0))
