"""Options that several commands have."""

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
UserOption = Annotated[
    list[str] | None,
    typer.Option("--user", "-u", help="Username or address; can be repeated."),
]
PatternOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pattern",
        help="Usernames: * matches any characters, ? one character; can be repeated.",
    ),
]
