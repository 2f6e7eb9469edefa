"""Printing of a syntax tree as a script that parses to the same tree."""

from mail.sieve.syntax.syntax_tree import Argument, Command, Number, Tag, Test, Text, Tree

_INDENT = "    "
_OF_MANY = ("allof", "anyof")  # a single inner test has parentheses too


def printed(tree: Tree) -> str:
    """Return a script with one command per line; it ends with a line end unless it is empty."""
    return "".join(f"{line}\n" for command in tree for line in _lines(command, ""))


def quoted(text: str) -> str:
    """Return a quoted string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _lines(command: Command, indent: str) -> list[str]:
    head = indent + _called(command)
    if command.block is None:
        return [f"{head};"]
    inner = [line for one in command.block for line in _lines(one, indent + _INDENT)]
    return [f"{head} {{", *inner, f"{indent}}}"]


def _called(call: Command | Test) -> str:
    words = [call.name, *map(_argument, call.arguments)]
    if len(call.tests) > 1 or (call.tests and call.name in _OF_MANY):
        words.append(f"({', '.join(map(_called, call.tests))})")
    else:
        words.extend(map(_called, call.tests))
    return " ".join(words)


def _argument(argument: Argument) -> str:
    if isinstance(argument, Text):
        return quoted(argument.value)
    if isinstance(argument, Number):
        return str(argument.value)
    if isinstance(argument, Tag):
        return f":{argument.name}"
    return f"[{', '.join(quoted(text.value) for text in argument.values)}]"
