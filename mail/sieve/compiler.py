"""Compilation of a syntax tree into a program (RFC 5228, section 2.10).

Checks required extensions, names and arguments.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mail.sieve import limits
from mail.sieve.errors import ScriptProblem, SieveError
from mail.sieve.execution import string_templates
from mail.sieve.execution.comparators import COMPARATORS
from mail.sieve.execution.signatures import (
    ArgumentType,
    ArgumentValue,
    CallSignature,
    IncludedScript,
    PositionalArgument,
    SieveCall,
    SieveProgram,
    TagOption,
    TestCount,
)
from mail.sieve.extensions.include import script_key
from mail.sieve.registry import ALWAYS_ENABLED, COMMANDS, EXTENSIONS, IMPLIED_EXTENSIONS, TESTS
from mail.sieve.source_position import SourcePosition
from mail.sieve.syntax.parser import parse_script
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

_COMPARATOR = "comparator-"
_VARIABLE_SETTERS = (
    "addflag",
    "extracttext",
    "removeflag",
    "set",
    "setflag",
)  # commands that set variables
_IN_LOOPS = ("break", "extracttext")


def compile_script(script: str | bytes) -> SieveProgram:
    """Parse and compile a script. Raises SieveError with its first problems, at most 20."""
    return compile_tree(parse_script(script))


def compile_tree(tree: Tree) -> SieveProgram:
    """Compile a syntax tree. Raises SieveError with its first problems, at most 20."""
    checker = _Compiler()
    calls = checker.compile_commands(tree, is_top_level=True)
    if checker.problems:
        raise SieveError(sorted(checker.problems)[: limits.MAX_PROBLEMS])
    return SieveProgram(
        calls, frozenset(checker.enabled_extensions), tuple(dict.fromkeys(checker.includes))
    )


class _InvalidNodeError(Exception):
    """A command or test is invalid. The problem has been recorded."""


class _Compiler:
    """Compiles a tree in its order, because `require` applies to what follows."""

    def __init__(self) -> None:
        self.enabled_extensions: set[str] = set(ALWAYS_ENABLED)
        self.problems: list[ScriptProblem] = []
        self.includes: list[IncludedScript] = []
        self.unknown_names: set[str] = set()  # already reported
        self.open_loops: list[str] = []  # names, outermost first
        self.regex_count = 0  # regular expressions are slow to compile

    def add_problem(self, position: SourcePosition, message: str) -> None:
        self.problems.append(ScriptProblem(*position, message))

    def record_problem_as_error(self, position: SourcePosition, message: str) -> _InvalidNodeError:
        """Record a problem and return the error to raise."""
        self.add_problem(position, message)
        return _InvalidNodeError()

    def has_enough_problems(self) -> bool:
        return len(self.problems) >= limits.MAX_PROBLEMS

    def compile_commands(
        self, tree: Sequence[CommandNode], *, is_top_level: bool = False
    ) -> tuple[SieveCall, ...]:
        calls: list[SieveCall] = []
        may_require = is_top_level
        at = 0
        while at < len(tree) and not self.has_enough_problems():
            command = tree[at]
            at += 1
            chain: list[CommandNode] = []
            if command.name == "if":
                while at < len(tree) and tree[at].name in ("elsif", "else"):
                    chain.append(tree[at])
                    at += 1
            try:
                if command.name == "require":
                    self.compile_require(command, may_require=may_require)
                elif command.name == "if":
                    calls.append(self.compile_if(command, chain))
                else:
                    calls.append(self.compile_command(command))
            except _InvalidNodeError:
                pass
            may_require = may_require and command.name == "require"
        return tuple(calls)

    def compile_require(self, command: CommandNode, *, may_require: bool) -> None:
        if not may_require:
            self.add_problem(command.position, "require must come before all other commands.")
        call = self.compile_command(command)
        positions = _string_positions(command.arguments)
        for name, position in zip(call.strings_argument("capabilities"), positions, strict=True):
            if not isinstance(name, str) or name not in EXTENSIONS:
                self.add_problem(position, f'Unknown extension "{str(name)[:100]}".')
            else:
                self.enable_extension(name)

    def enable_extension(self, name: str) -> None:
        self.enabled_extensions.add(name)
        if name in IMPLIED_EXTENSIONS:
            self.enabled_extensions.add(IMPLIED_EXTENSIONS[name])

    def compile_if(self, first: CommandNode, chain: Sequence[CommandNode]) -> SieveCall:
        """Compile an `if` with its branches. Branches that can't be reached are skipped."""
        tests: list[SieveCall] = []
        blocks: list[tuple[SieveCall, ...]] = []
        is_decided = has_else = False
        for command in (first, *chain):
            if has_else:
                self.add_problem(command.position, f"The command {command.name} can't follow else.")
            has_else = has_else or command.name == "else"
            self.require_branch_shape(
                command, TestCount.NONE if command.name == "else" else TestCount.ONE
            )
            if is_decided:
                continue
            result: bool | None = True
            if command.name != "else":
                test = self.compile_test_or_record(command.tests[0])
                tests += [test] if test else []
                result = self.constant_result_under_ihave(test) if test else None
            blocks.append(() if result is False else self.compile_commands(command.block or ()))
            is_decided = result is True
        return SieveCall(COMMANDS["if"], first.position, {}, tuple(tests), tuple(blocks))

    def compile_test_or_record(self, test: TestNode) -> SieveCall | None:
        """Compile a test, or return None after its problem was recorded."""
        try:
            return self.compile_test(test)
        except _InvalidNodeError:
            return None

    def require_branch_shape(self, command: CommandNode, test_count: TestCount) -> None:
        """Check that a branch has no arguments, the right number of tests, and a block."""
        if command.arguments:
            raise self.record_problem_as_error(
                command.position, f"The command {command.name} takes no arguments."
            )
        if len(command.tests) != (test_count is TestCount.ONE):
            expected = "one test" if test_count is TestCount.ONE else "no test"
            raise self.record_problem_as_error(
                command.position, f"The command {command.name} takes {expected}."
            )
        if command.block is None:
            raise self.record_problem_as_error(
                command.position, f"The command {command.name} must have a block in {{}}."
            )

    def constant_result_under_ihave(self, call: SieveCall) -> bool | None:
        """Return the constant result of a test that `ihave` decides (RFC 5463, section 4).

        Returns None if the result depends on the message.
        """
        if "ihave" not in self.enabled_extensions:
            return None
        if call.name in ("true", "false"):
            return call.name == "true"
        if call.name == "ihave":
            return set(call.strings_argument("capabilities")) <= self.enabled_extensions
        inner = [self.constant_result_under_ihave(test) for test in call.tests]
        if call.name in ("anyof", "allof") and (decides := call.name == "anyof") in inner:
            return decides
        if not inner or None in inner:
            return None
        return call.name == "allof" or (call.name == "not" and not inner[0])

    def compile_command(self, command: CommandNode) -> SieveCall:
        signature = COMMANDS.get(command.name)
        if command.name in ("elsif", "else"):
            raise self.record_problem_as_error(
                command.position, f"The command {command.name} must follow an if or elsif."
            )
        call = self.compile_call(signature, command)
        if call.signature.has_block is not (command.block is not None):
            ending = (
                "must have a block in {}"
                if call.signature.has_block
                else "must end with a semicolon"
            )
            raise self.record_problem_as_error(
                command.position, f"The command {command.name} {ending}."
            )
        if command.name == "foreverypart":
            self.open_loops.append(str(call.string_argument("name")).lower())
            call = replace(call, blocks=(self.compile_commands(command.block or ()),))
            self.open_loops.pop()
        elif command.name in _IN_LOOPS:
            handle_name = (
                str(call.string_argument("name")).lower() if call.has_argument("name") else ""
            )
            if not self.open_loops or (handle_name and handle_name not in self.open_loops):
                loop = (
                    f'foreverypart loop with the name "{handle_name}"'
                    if handle_name
                    else "foreverypart loop"
                )
                raise self.record_problem_as_error(
                    command.position, f"The command {command.name} must be inside a {loop}."
                )
        return call

    def compile_test(self, test: TestNode) -> SieveCall:
        return self.compile_call(TESTS.get(test.name), test)

    def compile_call(
        self, signature: CallSignature | None, node: CommandNode | TestNode
    ) -> SieveCall:
        """Compile a command or test with its arguments. Raises _InvalidNodeError."""
        node_kind = "command" if isinstance(node, CommandNode) else "test"
        if signature is None:
            if node.name in self.unknown_names:
                raise _InvalidNodeError
            self.unknown_names.add(node.name)
            raise self.record_problem_as_error(
                node.position, f"Unknown {node_kind} {node.name[:100]}."
            )
        self.require_declared_extension(signature.extension, node.position, node.name)
        if not _is_allowed_test_count(signature.test_count, len(node.tests)):
            expected_by_count = {
                TestCount.NONE: "no test",
                TestCount.ONE: "one test",
                TestCount.MANY: "tests",
            }
            raise self.record_problem_as_error(
                node.position,
                f"The {node_kind} {node.name} takes {expected_by_count[signature.test_count]}.",
            )
        values = self.compile_arguments(signature, node)
        variable = str(values.get("name", values.get("variable", "")))
        if signature.name in _VARIABLE_SETTERS and variable.lower().startswith("global."):
            self.require_declared_extension("include", node.position, "the namespace global")
        tests = self.compile_inner_tests_until_decided(signature, node.tests)
        call = SieveCall(signature, node.position, values, tests)
        if call.name == "ihave":
            self.enable_ihave_extensions_if_all_exist(call)
        elif call.name == "include":
            self.includes.append(IncludedScript(*script_key(call)))
        if call.chosen_tag("match", "is") == "regex":
            self.regex_count += len(call.strings_argument("keys")) + len(
                call.strings_argument("list")
            )
            if self.regex_count > limits.MAX_REGEXES:
                text = f"A script can have at most {limits.MAX_REGEXES} regular expressions."
                raise self.record_problem_as_error(node.position, text)
        problem = signature.find_problem(call) if signature.find_problem else None
        if problem:
            raise self.record_problem_as_error(node.position, problem)
        return call

    def compile_inner_tests_until_decided(
        self, signature: CallSignature, tests: Iterable[TestNode]
    ) -> tuple[SieveCall, ...]:
        """Compile the tests inside of a test, up to one that decides its result."""
        decides = {"anyof": True, "allof": False}.get(signature.name)
        calls: list[SieveCall] = []
        for test in tests:
            calls.append(self.compile_test(test))
            constant = self.constant_result_under_ihave(calls[-1])
            if constant is not None and constant is decides:
                break
        return tuple(calls)

    def enable_ihave_extensions_if_all_exist(self, call: SieveCall) -> None:
        """Enable the extensions of an `ihave` test, if all of them exist."""
        names = [name for name in call.strings_argument("capabilities") if isinstance(name, str)]
        if set(names) <= set(EXTENSIONS):
            for name in names:
                self.enable_extension(name)

    def require_declared_extension(
        self, extension: str | tuple[str, ...] | None, position: SourcePosition, element: str
    ) -> None:
        """Check that the extensions of an element exist and are required by the script."""
        extensions = (extension,) if isinstance(extension, str) else extension or ()
        for name in extensions:
            if name not in EXTENSIONS:
                raise self.record_problem_as_error(
                    position, f"This server does not support {element}."
                )
            if name not in self.enabled_extensions:
                raise self.record_problem_as_error(
                    position, f'The script must require "{name}" to use {element}.'
                )

    def compile_arguments(
        self, signature: CallSignature, node: CommandNode | TestNode
    ) -> dict[str, ArgumentValue]:
        """Return the arguments by name; tags are also listed by their group."""
        options_by_name = {option.name: option for option in signature.options}
        values: dict[str, ArgumentValue] = {}
        untagged: list[Argument] = []
        remaining = list(reversed(node.arguments))
        while remaining:
            argument = remaining.pop()
            if not isinstance(argument, TagNode):
                untagged.append(argument)
                continue
            if untagged:
                raise self.record_problem_as_error(
                    argument.position, "Tagged arguments must come before other arguments."
                )
            option = options_by_name.get(argument.name)
            if option is None:
                text = f"{node.name} does not support :{argument.name[:100]}."
                raise self.record_problem_as_error(argument.position, text)
            self.compile_tag(option, argument, remaining, values)
        self.compile_positional(signature, node, untagged, values)
        return values

    def compile_tag(
        self,
        option: TagOption,
        tag: TagNode,
        remaining: list[Argument],
        arguments: dict[str, ArgumentValue],
    ) -> None:
        """Add a tag and the argument after it to `arguments`."""
        self.require_declared_extension(option.extension, tag.position, f":{tag.name}")
        if tag.name in arguments or (option.group and option.group in arguments):
            raise self.record_problem_as_error(
                tag.position, f"The tag :{tag.name} conflicts with an earlier tag."
            )
        if option.group:
            arguments[option.group] = option.name
        if option.value_type is None:
            arguments[option.name] = True
            return
        if not remaining or isinstance(remaining[-1], TagNode):
            raise self.record_problem_as_error(
                tag.position, f"The tag :{tag.name} must be followed by {option.value_type.value}."
            )
        value = remaining.pop()
        constant = option.is_constant
        arguments[option.name] = self.compile_value(
            option.value_type, value, f":{tag.name}", is_constant=constant
        )
        if option.name == "comparator":
            self.require_declared_comparator(str(arguments["comparator"]), value.position)

    def require_declared_comparator(self, name: str, position: SourcePosition) -> None:
        if name not in COMPARATORS:
            raise self.record_problem_as_error(position, f'Unknown comparator "{name[:100]}".')
        self.require_declared_extension(_COMPARATOR + name, position, f'comparator "{name}"')

    def compile_positional(
        self,
        signature: CallSignature,
        node: CommandNode | TestNode,
        untagged: Sequence[Argument],
        arguments: dict[str, ArgumentValue],
    ) -> None:
        """Add the arguments without tags to `arguments`, by their names."""
        expected_arguments: Sequence[PositionalArgument] = signature.positional
        if len(untagged) < len(expected_arguments):
            expected_arguments = [
                expected for expected in expected_arguments if not expected.is_optional
            ]
        if len(untagged) != len(expected_arguments):
            count = len(expected_arguments)
            expected_text = f"{count} argument{'s' * (count != 1)} without a tag"
            raise self.record_problem_as_error(
                node.position, f"Expected {expected_text} for {node.name}, found {len(untagged)}."
            )
        for expected, argument in zip(expected_arguments, untagged, strict=True):
            name = f"The {expected.name} of {node.name}"
            arguments[expected.name] = self.compile_value(
                expected.argument_type, argument, name, is_constant=expected.is_constant
            )

    def compile_value(
        self,
        argument_type: ArgumentType,
        argument: Argument,
        description: str,
        *,
        is_constant: bool,
    ) -> ArgumentValue:
        if argument_type is ArgumentType.NUMBER and isinstance(argument, NumberNode):
            return argument.value
        if argument_type is ArgumentType.STRING and isinstance(argument, StringNode):
            return self.compile_string(argument, description, is_constant=is_constant)
        if argument_type is ArgumentType.STRINGS and isinstance(
            argument, StringNode | StringListNode
        ):
            listed = (argument,) if isinstance(argument, StringNode) else argument.values
            return tuple(
                self.compile_string(value, description, is_constant=is_constant) for value in listed
            )
        verb = "are" if argument_type is ArgumentType.STRINGS else "is"
        raise self.record_problem_as_error(
            argument.position, f"{description} {verb} {argument_type.value}."
        )

    def compile_string(
        self, text: StringNode, description: str, *, is_constant: bool
    ) -> string_templates.SieveString:
        value = text.value
        if "\0" in value or any("\ud800" <= sign <= "\udfff" for sign in value):
            raise self.record_problem_as_error(
                text.position, "A string must not contain NUL or a surrogate."
            )
        try:
            if "encoded-character" in self.enabled_extensions:
                value = string_templates.decode_encoded_characters(value)
            if "variables" not in self.enabled_extensions:
                return value
            template = string_templates.parse_variable_references(
                value, allow_globals="include" in self.enabled_extensions
            )
        except ValueError as problem:
            raise self.record_problem_as_error(text.position, str(problem)) from problem
        if is_constant and not isinstance(template, str):
            raise self.record_problem_as_error(
                text.position, f"{description} can't have variables."
            )
        return template


def _is_allowed_test_count(allowed: TestCount, count: int) -> bool:
    return count == (allowed is TestCount.ONE) if allowed is not TestCount.MANY else count > 0


def _string_positions(arguments: Iterable[Argument]) -> list[SourcePosition]:
    """Return the position of each string of the arguments."""
    positions: list[SourcePosition] = []
    for argument in arguments:
        if isinstance(argument, StringListNode):
            positions += [text.position for text in argument.values]
        else:
            positions.append(argument.position)
    return positions
