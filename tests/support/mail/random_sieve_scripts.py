"""Random Sieve scripts: syntax trees, sequences of tokens, and scripts that mostly compile."""

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


def _test_nodes(inner: some.SearchStrategy[TestNode]) -> some.SearchStrategy[TestNode]:
    return some.builds(TestNode, NAMES, ARGUMENTS, some.lists(inner, max_size=3).map(tuple))


SYNTAX_TREE_TESTS = some.recursive(
    some.builds(TestNode, NAMES, ARGUMENTS), _test_nodes, max_leaves=5
)


def _command_nodes(inner: some.SearchStrategy[CommandNode]) -> some.SearchStrategy[CommandNode]:
    blocks = some.none() | some.lists(inner, max_size=3).map(tuple)
    tests = some.lists(SYNTAX_TREE_TESTS, max_size=2).map(tuple)
    return some.builds(CommandNode, NAMES, ARGUMENTS, tests, blocks)


SYNTAX_TREES = some.lists(
    some.recursive(some.builds(CommandNode, NAMES, ARGUMENTS), _command_nodes, max_leaves=6),
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
TOKENS = [
    *COMMANDS, *TESTS, "elsif", "else", *_TAGS, *_STRINGS, "(", ")", "{", "}", "[", "]", ",", ";",
    "0", "1", "30", "1K", "9999999999", "\n", "#x\n", "/* x */",
]  # fmt: skip
TOKEN_SEQUENCES = some.lists(some.sampled_from(TOKENS), max_size=40).map(
    lambda words: _REQUIRE + " ".join(words)
)

FIELD_NAMES = ["content-type", "subject", "X-Number", "x-many", "x-none", "from", "to", "cc"]
EDITED_FIELD_NAMES = ["x-many", "subject", "x-new", "X-Number"]
DATE_KEYS = ["2026", "3", "*-03-*", "22", "Wed*", "22:30:00", "01:30:00", "-0300"]
ADDRESS_FIELD_NAMES = ["from", "to", "cc", "reply-to"]
KEYS = [
    "text", "plain", "b", "a", "7", "07", "one", "TWO", "*", "t*", "on?", "*e?", "ada*", "*@*",
    "*.org", "bob", "list",
    "", "example.com", "ada@example.org", "Hello*", "hello world", "w", "o*o", "2", "3", "1", "0",
    "${1}", "${v}", "x${2}y", "${0}",
]  # fmt: skip
REGEX_KEYS = [
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
_VALUES_BY_ARGUMENT: dict[str, list[str]] = {  # by the name of the argument
    "address": ["one@example.net", "two@example.net"],
    "comparator": ["i;octet", "i;ascii-casemap", "i;ascii-numeric"],
    "count": ["gt", "ge", "lt", "le", "eq", "ne"],
    "flags": FLAGS,
    "list": FLAGS,
    "keys": KEYS,
    "mailbox": MAILBOXES,
    "mailboxes": ["INBOX", "Old"],
    "fcc": MAILBOXES,
    "names": FIELD_NAMES,
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
_TEST_COMBINATORS = ("allof", "anyof", "not")
_CONTROL_COMMANDS = ("if", "require", "error", "foreverypart", "break", "extracttext")


class RandomSieveWriter:
    """Writes random scripts that mostly compile. A seed always gives the same script."""

    def __init__(
        self,
        seed: int,
        *,
        excluded_commands: Collection[str] = (),  # commands and tests
        excluded_tags: Collection[str] = (),  # tags
        extensions: Sequence[str] = EXTENSIONS,
    ) -> None:
        self.random = Random(seed)  # noqa: S311
        self.last_tags: set[str] = set()  # the tags of the call that is written
        self.excluded_tags, self.extensions = excluded_tags, extensions
        tests = [
            signature
            for name, signature in TESTS.items()
            if name not in (*excluded_commands, *_TEST_COMBINATORS)
        ]
        commands = [
            signature
            for name, signature in COMMANDS.items()
            if name not in (*excluded_commands, *_CONTROL_COMMANDS)
        ]
        self.tests, self.commands = (
            [signature for signature in signatures if self.is_usable(signature)]
            for signatures in (tests, commands)
        )
        self.commands += [
            signature for signature in self.commands if signature.name in ("fileinto", "redirect")
        ] * 2

    def script(self) -> Tree:
        required = StringListNode(tuple(StringNode(name) for name in self.extensions))
        return (CommandNode("require", (required,)), *self.block(0))

    def block(self, depth: int) -> Tree:
        commands: list[CommandNode] = []
        for _ in range(self.random.randint(1, 5 - depth)):
            if depth == 2 or self.random.random() < 0.6:
                signature = self.random.choice(self.commands)
                commands.append(CommandNode(signature.name, self.arguments(signature)))
                continue
            if "foreverypart" in self.extensions and self.random.random() < 0.3:
                loop = (*self.block(depth + 1), CommandNode("extracttext", (StringNode("v"),)))
                exit_condition = CommandNode("if", (), (self.test(2),), (CommandNode("break"),))
                commands.append(CommandNode("foreverypart", (), (), (exit_condition, *loop)))
                continue
            commands.append(CommandNode("if", (), (self.test(0),), self.block(depth + 1)))
            if self.random.random() < 0.4:
                commands.append(CommandNode("elsif", (), (self.test(0),), self.block(depth + 1)))
            if self.random.random() < 0.5:
                commands.append(CommandNode("else", (), (), self.block(depth + 1)))
        return tuple(commands)

    def test(self, depth: int) -> TestNode:
        if depth == 3 or self.random.random() < 0.6:
            signature = self.random.choice(self.tests)
            return TestNode(signature.name, self.arguments(signature))
        name = self.random.choice(_TEST_COMBINATORS)
        test_count = 1 if name == "not" else self.random.randint(1, 3)
        return TestNode(name, (), tuple(self.test(depth + 1) for _ in range(test_count)))

    def random_tags(self, signature: CallSignature) -> dict[str, TagOption]:
        """Random tags of a call by group, with the tags that they require."""
        usable_tags = {
            option.name: option for option in signature.options if self.is_usable(option)
        }
        chosen: dict[str, TagOption] = {}
        for option in self.random.sample(
            [*usable_tags.values()], min(len(usable_tags), self.random.choice([0, 1, 1, 2, 3]))
        ):
            chosen.setdefault(option.group or option.name, option)
        if signature.name == "size":
            chosen.setdefault("relation", usable_tags["over"])
        if "last" in chosen and "index" not in chosen:
            del chosen["last"]
        if {"aspect", "anychild"} & set(chosen):
            chosen["mime"] = usable_tags["mime"]
        if "fcc" in usable_tags and {"flags", "create", "specialuse"} & set(chosen):
            chosen["fcc"] = usable_tags["fcc"]
        match_type = chosen["match"].name if "match" in chosen else "is"
        if match_type in ("contains", "matches"):
            chosen.pop("comparator", None)
        elif match_type in ("value", "regex"):  # Pigeonhole's defaults differ from RFC 5231
            chosen["comparator"] = usable_tags["comparator"]
        return chosen

    def arguments(self, signature: CallSignature) -> tuple[Argument, ...]:
        chosen = self.random_tags(signature)
        match_type = chosen["match"].name if "match" in chosen else "is"
        arguments: list[Argument] = []
        for option in chosen.values():
            arguments.append(TagNode(option.name))
            if option.value_type:
                name = "count" if option.group == "match" else option.name
                arguments.append(self.value(option.value_type, signature.name, name, match_type))
        self.last_tags = set(chosen)
        with_optional = self.random.random() < 0.5
        arguments += [
            self.value(argument.argument_type, signature.name, argument.name, match_type)
            for argument in signature.positional
            if with_optional or not argument.is_optional
        ]
        return tuple(arguments)

    def is_usable(self, element: TagOption | CallSignature) -> bool:
        """True if scripts can use this tag, command or test."""
        extensions = element.extension or ()
        extensions = (extensions,) if isinstance(extensions, str) else extensions
        return element.name not in self.excluded_tags and set(extensions) <= set(self.extensions)

    def value(
        self, argument_type: ArgumentType, command: str, name: str, match_type: str
    ) -> Argument:
        """A random value for an argument of this name and match type."""
        if argument_type is ArgumentType.NUMBER:
            return NumberNode(self.random.choice(_NUMBERS) + (name == "index"))
        samples = self.special_values(command, name, match_type) or _VALUES_BY_ARGUMENT.get(
            name, KEYS
        )
        if argument_type is ArgumentType.STRING or self.random.random() < 0.5:
            return StringNode(self.random.choice(samples))
        string_count = self.random.randint(1, 3)
        return StringListNode(
            tuple(StringNode(self.random.choice(samples)) for _ in range(string_count))
        )

    def special_values(self, command: str, name: str, match_type: str) -> Sequence[str]:
        """Sample values that depend on the command or match type; empty if there are none."""
        if command in ("redirect", "fileinto") and name in ("address", "mailbox"):
            # If the same action comes with :copy first, Pigeonhole keeps the message as well.
            return (
                _VALUES_BY_ARGUMENT[name][::2]
                if "copy" in self.last_tags
                else _VALUES_BY_ARGUMENT[name][1::2]
            )
        by_match_type: dict[tuple[str, str], Sequence[str]] = {
            ("regex", "keys"): REGEX_KEYS,
            ("regex", "list"): REGEX_KEYS,
            ("regex", "comparator"): _VALUES_BY_ARGUMENT["comparator"][:2],
            # Pigeonhole sorts letters and signs differently, and patterns are no lists of flags.
            ("value", "list"): ["Work", "b", ""],
            ("matches", "list"): ["Work", "b", ""],
        }
        by_owner: dict[tuple[str, str], Sequence[str]] = {
            ("address", "names"): ADDRESS_FIELD_NAMES,
            ("date", "name"): ["date"],
            ("date", "keys"): DATE_KEYS,
            ("global", "names"): ["v"],
            ("addheader", "name"): EDITED_FIELD_NAMES,
            ("deleteheader", "name"): EDITED_FIELD_NAMES,
        }
        return by_match_type.get((match_type, name)) or by_owner.get((command, name), ())


COMPILING_SCRIPTS = some.integers(0, 2**32).map(lambda seed: RandomSieveWriter(seed).script())
