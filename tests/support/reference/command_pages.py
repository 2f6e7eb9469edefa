"""Pages of the commands of `merganser`, with their arguments and options."""

from collections.abc import Iterator, Mapping
from typing import Any

from click import Context

from merganser.commands.command_line import create_command_line
from tests.support.reference.markdown import cell, first_sentence, table

INTRODUCTION = """\
# Commands

`merganser COMMAND --help` prints the text of a command in a terminal. A command that succeeds
exits with status 0.
"""


def commands_page() -> str:
    """The table of all commands."""
    rows = (
        (
            f"[{name}](commands/{group}.md#{name.replace(' ', '-')})",
            first_sentence(command.help or ""),
        )
        for group, commands in _commands_by_group().items()
        for name, command in commands.items()
    )
    return "\n".join([INTRODUCTION, *table(("Command", "Meaning"), rows)])


def command_pages() -> dict[str, str]:
    """The page of each group of commands, by its path below docs/reference."""
    return {
        f"commands/{group}.md": _group_page(group, commands)
        for group, commands in _commands_by_group().items()
    }


def _group_page(group: str, commands: Mapping[str, Any]) -> str:
    lines = [f"# Commands of {group}", "", "Back to [Commands](../commands.md).", ""]
    for name, command in commands.items():
        lines += _command_section(command, name)
    return "\n".join(lines)


def _commands_by_group() -> dict[str, dict[str, Any]]:
    """The commands by their full name, in the groups of their first word after `merganser`."""
    groups = dict[str, dict[str, Any]]()
    for name, command in _iter_commands(create_command_line(), "merganser"):
        groups.setdefault(name.split()[1], {})[name] = command
    return groups


def _iter_commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "list_commands"):
        yield name, command
        return
    context = Context(command)
    for subcommand_name in sorted(command.list_commands(context)):  # a lazy group imports them here
        subcommand = command.get_command(context, subcommand_name)
        if not subcommand.hidden:
            yield from _iter_commands(subcommand, f"{name} {subcommand_name}")


def _command_section(command: Any, name: str) -> Iterator[str]:
    yield from (f"## {name}", "")
    for paragraph in (command.help or "").split("\n\n"):
        text = " ".join(paragraph.split())
        if text.startswith("Example: "):
            yield from ("```sh", text.removeprefix("Example: "), "```", "")
        else:
            yield from (text, "")
    yield from table(("Argument or option", "Meaning"), map(_parameter_row, _visible(command)))


def _visible(command: Any) -> list[Any]:
    return [param for param in command.params if not getattr(param, "hidden", False)]


def _parameter_row(parameter: Any) -> tuple[str, str]:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`", cell(getattr(parameter, "help", None) or "")
    return f"`{', '.join(parameter.opts)}`", cell(parameter.help or "")
