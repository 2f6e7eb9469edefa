"""Commands that are imported when they are needed, so that `--help` and light commands start fast.

A command has two functions of the same name and parameters. The declaration, in a module
`…_declarations.py`, has the options and the help text and imports nothing heavy. The
implementation is imported when the command runs, with the database, the resolvers or the schema.
A group of commands imports its declarations only if it is named on the command line.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from typer import Typer
from typer.core import TyperGroup
from typer.main import get_group

from merganser.server.process_memory import import_without_garbage_collection


def join_wrapped_lines(text: str) -> str:
    """Join the lines of each paragraph of a docstring. typer would keep them in a narrow window."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


class LazyImplementation:
    """The implementation of a declared command, which is imported at the first call."""

    __name__: str  # of the declaration

    def __init__(self, declaration: Callable[..., None], module_name: str) -> None:
        functools.update_wrapper(self, declaration)  # typer reads signature and docstring
        self.__doc__ = join_wrapped_lines(declaration.__doc__ or "")
        self._module_name = module_name

    def load(self) -> Callable[..., None]:
        """Import the module of the implementation and return its function."""
        module = sys.modules.get(self._module_name) or import_without_garbage_collection(
            self._module_name
        )
        implementation: Callable[..., None] = getattr(module, self.__name__)
        return implementation

    def __call__(self, **options: Any) -> None:
        """Run the command."""
        self.load()(**options)


def implemented_in(module_name: str) -> Callable[[Callable[..., None]], LazyImplementation]:
    """Decorate the declaration of a command with the module of its implementation."""
    return lambda declaration: LazyImplementation(declaration, module_name)


class LazyCommandGroup(TyperGroup):
    """A group of commands that imports their declarations if the group is named.

    The declarations are the variable `declarations` of the module, a Typer application.
    """

    def __init__(self, name: str, module_name: str, help_text: str) -> None:
        super().__init__(name=name, help=help_text, no_args_is_help=True)
        self._module_name = module_name

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands in their order."""
        self._import_declarations()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; None if there is no such command."""
        self._import_declarations()
        return super().get_command(ctx, cmd_name)

    def _import_declarations(self) -> None:
        if not self.commands:
            declarations: Typer = import_module(self._module_name).declarations
            self.commands.update(get_group(declarations).commands)
