"""Printing of a syntax tree as a script that parses to the same tree."""

from mail.sieve.syntax.syntax_tree import (
    Argument,
    CommandNode,
    NumberNode,
    StringNode,
    TagNode,
    TestNode,
    Tree,
)

_INDENT = "    "
_TEST_LIST_TESTS = ("allof", "anyof")  # a single inner test has parentheses too


def print_script(tree: Tree) -> str:
    """Return a script with one command per line; it ends with a line end unless it is empty."""
    return "".join(f"{line}\n" for command in tree for line in _command_lines(command, ""))


def quote_string(text: str) -> str:
    """Return a quoted string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _command_lines(command: CommandNode, indent: str) -> list[str]:
    head = indent + _call_text(command)
    if command.block is None:
        return [f"{head};"]
    inner = [
        line
        for nested_command in command.block
        for line in _command_lines(nested_command, indent + _INDENT)
    ]
    return [f"{head} {{", *inner, f"{indent}}}"]


def _call_text(call: CommandNode | TestNode) -> str:
    words = [call.name, *map(_argument_text, call.arguments)]
    if len(call.tests) > 1 or (call.tests and call.name in _TEST_LIST_TESTS):
        words.append(f"({', '.join(map(_call_text, call.tests))})")
    else:
        words.extend(map(_call_text, call.tests))
    return " ".join(words)


def _argument_text(argument: Argument) -> str:
    if isinstance(argument, StringNode):
        return quote_string(argument.value)
    if isinstance(argument, NumberNode):
        return str(argument.value)
    if isinstance(argument, TagNode):
        return f":{argument.name}"
    return f"[{', '.join(quote_string(text.value) for text in argument.values)}]"
