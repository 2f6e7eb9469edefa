"""Compilation of a syntax tree into a program (RFC 5228, section 2.10).

Checks required extensions, names and arguments.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mail.sieve import limits
from mail.sieve.errors import Problem, SieveError
from mail.sieve.execution import string_templates
from mail.sieve.execution.comparators import COMPARATORS
from mail.sieve.execution.signatures import (
    Call,
    Given,
    Include,
    Kind,
    Option,
    Program,
    Signature,
    Tests,
    Value,
)
from mail.sieve.extensions.include import include_of
from mail.sieve.registry import ALWAYS, COMMANDS, EXTENSIONS, IMPLIED, TESTS
from mail.sieve.source_position import Place
from mail.sieve.syntax.parser import parse
from mail.sieve.syntax.syntax_tree import Argument, Command, Number, Tag, Test, Text, Texts, Tree

_COMPARATOR = "comparator-"
_SETTING = ("addflag", "extracttext", "removeflag", "set", "setflag")  # commands that set variables
_IN_LOOPS = ("break", "extracttext")


def compiled(script: str | bytes) -> Program:
    """Parse and compile a script. Raises SieveError with its first problems, at most 20."""
    return checked(parse(script))


def checked(tree: Tree) -> Program:
    """Compile a syntax tree. Raises SieveError with its first problems, at most 20."""
    checker = _Checker()
    calls = checker.commands(tree, is_top=True)
    if checker.problems:
        raise SieveError(sorted(checker.problems)[: limits.PROBLEMS])
    return Program(calls, frozenset(checker.enabled), tuple(dict.fromkeys(checker.includes)))


class _Wrong(Exception):
    """A command or test is invalid. The problem has been recorded."""


class _Checker:
    """Compiles a tree in its order, because `require` applies to what follows."""

    def __init__(self) -> None:
        self.enabled: set[str] = set(ALWAYS)
        self.problems: list[Problem] = []
        self.includes: list[Include] = []
        self.unknown: set[str] = set()  # already reported
        self.loops: list[str] = []  # names, outermost first
        self.expressions = 0  # regular expressions are slow to compile

    def wrong(self, place: Place, message: str) -> None:
        self.problems.append(Problem(*place, message))

    def failed(self, place: Place, message: str) -> _Wrong:
        """Record a problem and return the error to raise."""
        self.wrong(place, message)
        return _Wrong()

    def is_full(self) -> bool:
        return len(self.problems) >= limits.PROBLEMS

    def commands(self, tree: Sequence[Command], *, is_top: bool = False) -> tuple[Call, ...]:
        found: list[Call] = []
        may_require = is_top
        at = 0
        while at < len(tree) and not self.is_full():
            command = tree[at]
            at += 1
            chain: list[Command] = []
            if command.name == "if":
                while at < len(tree) and tree[at].name in ("elsif", "else"):
                    chain.append(tree[at])
                    at += 1
            try:
                if command.name == "require":
                    self.require(command, may_require=may_require)
                elif command.name == "if":
                    found.append(self.branches(command, chain))
                else:
                    found.append(self.command(command))
            except _Wrong:
                pass
            may_require = may_require and command.name == "require"
        return tuple(found)

    def require(self, command: Command, *, may_require: bool) -> None:
        if not may_require:
            self.wrong(command.place, "require stands before all else")
        call = self.command(command)
        places = _places(command.arguments)
        for name, place in zip(call.strings("capabilities"), places, strict=True):
            if not isinstance(name, str) or name not in EXTENSIONS:
                self.wrong(place, f'there is no extension "{str(name)[:100]}"')
            else:
                self.enable(name)

    def enable(self, name: str) -> None:
        self.enabled.add(name)
        if name in IMPLIED:
            self.enabled.add(IMPLIED[name])

    def branches(self, first: Command, chain: Sequence[Command]) -> Call:
        """Compile an `if` with its branches. Branches that can't be reached are skipped."""
        tests: list[Call] = []
        blocks: list[tuple[Call, ...]] = []
        decided = ended = False
        for command in (first, *chain):
            if ended:
                self.wrong(command.place, f"{command.name} stands behind else")
            ended = ended or command.name == "else"
            self.shaped(command, Tests.NONE if command.name == "else" else Tests.ONE)
            if decided:
                continue
            known: bool | None = True
            if command.name != "else":
                test = self.tried(command.tests[0])
                tests += [test] if test else []
                known = self.known(test) if test else None
            blocks.append(() if known is False else self.commands(command.block or ()))
            decided = known is True
        return Call(COMMANDS["if"], first.place, {}, tuple(tests), tuple(blocks))

    def tried(self, test: Test) -> Call | None:
        """Compile a test, or return None after its problem was recorded."""
        try:
            return self.test(test)
        except _Wrong:
            return None

    def shaped(self, command: Command, tests: Tests) -> None:
        """Check that a branch has no arguments, the right number of tests, and a block."""
        if command.arguments:
            raise self.failed(command.place, f"{command.name} takes no arguments")
        if len(command.tests) != (tests is Tests.ONE):
            wanted = "one test" if tests is Tests.ONE else "no test"
            raise self.failed(command.place, f"{command.name} takes {wanted}")
        if command.block is None:
            raise self.failed(command.place, f"{command.name} has a block in {{}}")

    def known(self, call: Call) -> bool | None:
        """Return the constant result of a test that `ihave` decides (RFC 5463, section 4).

        Returns None if the result depends on the message.
        """
        if "ihave" not in self.enabled:
            return None
        if call.name in ("true", "false"):
            return call.name == "true"
        if call.name == "ihave":
            return set(call.strings("capabilities")) <= self.enabled
        inner = [self.known(one) for one in call.tests]
        if call.name in ("anyof", "allof") and (decides := call.name == "anyof") in inner:
            return decides
        if not inner or None in inner:
            return None
        return call.name == "allof" or (call.name == "not" and not inner[0])

    def command(self, command: Command) -> Call:
        signature = COMMANDS.get(command.name)
        if command.name in ("elsif", "else"):
            raise self.failed(command.place, f"{command.name} stands behind no if")
        call = self.call(signature, command)
        if call.signature.block is not (command.block is not None):
            text = "has a block in {}" if call.signature.block else "ends in a semicolon"
            raise self.failed(command.place, f"{command.name} {text}")
        if command.name == "foreverypart":
            self.loops.append(str(call.string("name")).lower())
            call = replace(call, blocks=(self.commands(command.block or ()),))
            self.loops.pop()
        elif command.name in _IN_LOOPS:
            named = str(call.string("name")).lower() if call.has("name") else ""
            if not self.loops or (named and named not in self.loops):
                raise self.failed(command.place, f"{command.name} stands in such a foreverypart")
        return call

    def test(self, test: Test) -> Call:
        return self.call(TESTS.get(test.name), test)

    def call(self, signature: Signature | None, node: Command | Test) -> Call:
        """Compile a command or test with its arguments. Raises _InvalidNodeError."""
        kind = "command" if isinstance(node, Command) else "test"
        if signature is None:
            if node.name in self.unknown:
                raise _Wrong
            self.unknown.add(node.name)
            raise self.failed(node.place, f"there is no {kind} {node.name[:100]}")
        self.needs(signature.extension, node.place, node.name)
        if not _count_fits(signature.tests, len(node.tests)):
            wanted = {Tests.NONE: "no test", Tests.ONE: "one test", Tests.MANY: "tests"}
            raise self.failed(node.place, f"{node.name} takes {wanted[signature.tests]}")
        values = self.values(signature, node)
        setting = str(values.get("name", values.get("variable", "")))
        if signature.name in _SETTING and setting.lower().startswith("global."):
            self.needs("include", node.place, "the namespace global")
        tests = self.inner(signature, node.tests)
        call = Call(signature, node.place, values, tests)
        if call.name == "ihave":
            self.have(call)
        elif call.name == "include":
            self.includes.append(Include(*include_of(call)))
        if call.chosen("match", "is") == "regex":
            self.expressions += len(call.strings("keys")) + len(call.strings("list"))
            if self.expressions > limits.EXPRESSIONS:
                text = f"at most {limits.EXPRESSIONS} regular expressions in a script"
                raise self.failed(node.place, text)
        problem = signature.check(call) if signature.check else None
        if problem:
            raise self.failed(node.place, problem)
        return call

    def inner(self, signature: Signature, tests: Iterable[Test]) -> tuple[Call, ...]:
        """Compile the tests inside of a test, up to one that decides its result."""
        decides = {"anyof": True, "allof": False}.get(signature.name)
        found: list[Call] = []
        for test in tests:
            found.append(self.test(test))
            known = self.known(found[-1])
            if known is not None and known is decides:
                break
        return tuple(found)

    def have(self, call: Call) -> None:
        """Enable the extensions of an `ihave` test, if all of them exist."""
        names = [name for name in call.strings("capabilities") if isinstance(name, str)]
        if set(names) <= set(EXTENSIONS):
            for name in names:
                self.enable(name)

    def needs(self, extension: str | tuple[str, ...] | None, place: Place, what: str) -> None:
        """Check that the extensions of an element exist and are required by the script."""
        wanted = (extension,) if isinstance(extension, str) else extension or ()
        for name in wanted:
            if name not in EXTENSIONS:
                raise self.failed(place, f"there is no {what}")
            if name not in self.enabled:
                raise self.failed(place, f'{what} is there with require "{name}"')

    def values(self, signature: Signature, node: Command | Test) -> dict[str, Value]:
        """Return the arguments by name; tags are also listed by their group."""
        options = {option.name: option for option in signature.options}
        values: dict[str, Value] = {}
        plain: list[Argument] = []
        waiting = list(reversed(node.arguments))
        while waiting:
            argument = waiting.pop()
            if not isinstance(argument, Tag):
                plain.append(argument)
                continue
            if plain:
                raise self.failed(argument.place, "tags stand before other arguments")
            option = options.get(argument.name)
            if option is None:
                text = f"{node.name} knows no :{argument.name[:100]}"
                raise self.failed(argument.place, text)
            self.option(option, argument, waiting, values)
        self.positional(signature, node, plain, values)
        return values

    def option(
        self, option: Option, tag: Tag, waiting: list[Argument], values: dict[str, Value]
    ) -> None:
        """Add a tag and the argument after it to `arguments`."""
        self.needs(option.extension, tag.place, f":{tag.name}")
        if tag.name in values or (option.group and option.group in values):
            raise self.failed(tag.place, f":{tag.name} is one too many")
        if option.group:
            values[option.group] = option.name
        if option.value is None:
            values[option.name] = True
            return
        if not waiting or isinstance(waiting[-1], Tag):
            raise self.failed(tag.place, f"behind :{tag.name} stands {option.value.value}")
        value = waiting.pop()
        constant = option.constant
        values[option.name] = self.value(option.value, value, f":{tag.name}", constant=constant)
        if option.name == "comparator":
            self.comparator(str(values["comparator"]), value.place)

    def comparator(self, name: str, place: Place) -> None:
        if name not in COMPARATORS:
            raise self.failed(place, f'there is no comparator "{name[:100]}"')
        self.needs(_COMPARATOR + name, place, f'comparator "{name}"')

    def positional(
        self,
        signature: Signature,
        node: Command | Test,
        plain: Sequence[Argument],
        values: dict[str, Value],
    ) -> None:
        """Add the arguments without tags to `arguments`, by their names."""
        wanted: Sequence[Given] = signature.given
        if len(plain) < len(wanted):
            wanted = [given for given in wanted if not given.optional]
        if len(plain) != len(wanted):
            many = f"{len(wanted)} argument{'s' * (len(wanted) != 1)} without a tag"
            raise self.failed(node.place, f"{node.name} takes {many}, not {len(plain)}")
        for given, argument in zip(wanted, plain, strict=True):
            name = f"the {given.name} of {node.name}"
            values[given.name] = self.value(given.kind, argument, name, constant=given.constant)

    def value(self, kind: Kind, argument: Argument, what: str, *, constant: bool) -> Value:
        if kind is Kind.NUMBER and isinstance(argument, Number):
            return argument.value
        if kind is Kind.STRING and isinstance(argument, Text):
            return self.string(argument, what, constant=constant)
        if kind is Kind.STRINGS and isinstance(argument, Text | Texts):
            listed = (argument,) if isinstance(argument, Text) else argument.values
            return tuple(self.string(one, what, constant=constant) for one in listed)
        verb = "are" if kind is Kind.STRINGS else "is"
        raise self.failed(argument.place, f"{what} {verb} {kind.value}")

    def string(self, text: Text, what: str, *, constant: bool) -> string_templates.String:
        value = text.value
        if "\0" in value or any("\ud800" <= sign <= "\udfff" for sign in value):
            raise self.failed(text.place, "no text holds a NUL or half a character")
        try:
            if "encoded-character" in self.enabled:
                value = string_templates.unencoded(value)
            if "variables" not in self.enabled:
                return value
            found = string_templates.template(value, has_globals="include" in self.enabled)
        except ValueError as problem:
            raise self.failed(text.place, str(problem)) from problem
        if constant and not isinstance(found, str):
            raise self.failed(text.place, f"{what} holds no variables")
        return found


def _count_fits(tests: Tests, count: int) -> bool:
    return count == (tests is Tests.ONE) if tests is not Tests.MANY else count > 0


def _places(arguments: Iterable[Argument]) -> list[Place]:
    """Return the position of each string of the arguments."""
    found: list[Place] = []
    for argument in arguments:
        if isinstance(argument, Texts):
            found += [text.place for text in argument.values]
        else:
            found.append(argument.place)
    return found
