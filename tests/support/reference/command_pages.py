"""The page of the commands of `merganser`, with their arguments and options."""

from collections.abc import Iterator
from typing import Any

from click import Context

from merganser.commands.command_line import create_command_line
from tests.support.reference.markdown import cell, table

INTRODUCTION = """\
# Commands

`merganser COMMAND --help` prints these texts in a terminal. A command that succeeds exits with
status 0.
"""


def commands_page() -> str:
    """The page with a section for each command."""
    return "\n".join([INTRODUCTION, *_sections(create_command_line(), "merganser")])


def _sections(command: Any, name: str) -> Iterator[str]:
    if not hasattr(command, "list_commands"):
        yield from _command_section(command, name)
        return
    context = Context(command)
    for subcommand_name in sorted(command.list_commands(context)):  # a lazy group imports them here
        subcommand = command.get_command(context, subcommand_name)
        if not subcommand.hidden:
            yield from _sections(subcommand, f"{name} {subcommand_name}")


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
