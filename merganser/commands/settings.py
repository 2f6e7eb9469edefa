"""The commands `merganser setting …`, for stored settings that can change at run time."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.errors import MISUSED, Trouble

if TYPE_CHECKING:
    from merganser.settings.settings import Settings
    from models.runtime.environment import World
    from resolvers.admin.settings import Found
    from resolvers.context import Context

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[
    str | None, typer.Option(help="Why; kept in its history and in the administrative log.")
]
SWITCHES = {"true": True, "on": True, "false": False, "off": False}


def list_settings(
    part: Annotated[str | None, typer.Argument(help="Only keys that have this in them.")] = None,
    as_json: Json = False,
) -> None:
    """List the stored settings there are: each with its value, and where that is from.

    What a server needs before it has a store is set by the environment: `merganser settings`.

    Example: merganser setting list retention
    """
    import json

    from merganser.commands.environment_run import run
    from merganser.commands.terminal_tables import shown

    async def run_operation(environment: "World", _settings: "Settings") -> "list[Found]":
        from merganser.server.environment_factory import owner
        from resolvers.admin import settings

        return await settings.all_of(owner(environment), part)

    found = run(run_operation)
    if as_json:
        typer.echo(json.dumps([_plain(each) for each in found], indent=2, ensure_ascii=False))
        return
    rows = [
        (each.key, _told(each.value), "stored" if each.custom else "default", each.kind.value)
        for each in found
    ]
    shown(("key", "value", "from", "type"), rows)


def get(
    key: Annotated[str, typer.Argument(help="Key, as `merganser setting list` shows it.")],
    as_json: Json = False,
) -> None:
    """Print the value of one stored setting; with --json all that is known of it.

    Example: merganser setting get submission.maxRecipients
    """
    import json

    from merganser.commands.environment_run import run

    async def run_operation(environment: "World", _settings: "Settings") -> "Found | None":
        from merganser.server.environment_factory import owner
        from resolvers.admin import settings

        return await settings.one(owner(environment), key)

    found = run(run_operation)
    if found is None:
        raise Trouble(f"there is no setting {key}: `merganser setting list` shows all")
    typer.echo(
        json.dumps(_plain(found), indent=2, ensure_ascii=False) if as_json else _told(found.value)
    )


def put(
    key: Annotated[str, typer.Argument(help="Key, as `merganser setting list` shows it.")],
    value: Annotated[
        str,
        typer.Argument(help='As in 50, "3 GiB", "14 days", P14D, off, null; else JSON or a text.'),
    ],
    reason: Reason = None,
) -> None:
    """Store another value of a setting. Running servers go by it within seconds.

    Settings of your own begin with custom.

    Example: merganser setting set submission.maxRecipients 50

    Example: merganser setting set auth.tokenTtl "14 days" --reason "as agreed"
    """
    from merganser.commands.environment_run import run

    async def run_operation(environment: "World", _settings: "Settings") -> "Found":
        from resolvers.admin import settings

        return await settings.put(_owner(environment, reason), key, _read(key, value))

    typer.echo(f"{key} is {_told(run(run_operation).value)}")


def unset(
    keys: Annotated[
        list[str], typer.Argument(help="Keys, as `merganser setting list` shows them.")
    ],
    reason: Reason = None,
) -> None:
    """Let settings have their defaults again, all or none. Those of your own are gone then.

    Example: merganser setting unset submission.maxRecipients
    """
    from merganser.commands.environment_run import run

    async def run_operation(environment: "World", _settings: "Settings") -> "list[Found]":
        from resolvers.admin import settings

        found, _ = await settings.drop(_owner(environment, reason), keys)
        return found

    there = {each.key: each for each in run(run_operation)}
    for key in dict.fromkeys(keys):
        typer.echo(f"{key} is {_told(there[key].value)}" if key in there else f"{key} is gone")


def _owner(environment: "World", reason: str | None) -> "Context":
    from merganser.server.environment_factory import owner

    if reason and (len(reason) > 255 or not reason.isprintable()):  # noqa: PLR2004 - as of the API
        raise Trouble("--reason: at most 255 printable characters", code=MISUSED)
    ctx = owner(environment)
    ctx.reason = reason or None
    return ctx


def _read(key: str, text: str) -> Any:
    """Parse the value of a setting from the command line to a JSON value."""
    import json

    from merganser.settings.units import span
    from models.quantities import long
    from resolvers.admin.setting_definitions import DECLARED, Kind

    declared = DECLARED.get(key)
    if declared is None:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    given: Any = text
    if declared.nullable and text == "null":
        given = None
    elif declared.kind is Kind.BOOLEAN:
        given = SWITCHES.get(text.lower(), text)
    elif declared.kind is Kind.DURATION:
        with suppress(ValueError):  # otherwise ISO 8601 or invalid, which is checked later
            read: Any = span(text)
            given = long(read)
    return given


def _told(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(found: "Found") -> dict[str, Any]:
    return {
        "key": found.key,
        "value": found.value,
        "kind": found.kind.value,
        "custom": found.custom,
        "default": found.default,
        "name": found.name,
        "description": found.description,
        "restart_required": found.restart_required,
    }


def settings() -> typer.Typer:
    """Create the command group `setting`."""
    made = typer.Typer(help="List and change settings while a server runs.", no_args_is_help=True)
    made.command("list")(list_settings)
    made.command("get")(get)
    made.command("set")(put)
    made.command("unset")(unset)
    return made
