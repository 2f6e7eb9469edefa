"""The commands `merganser setting …`, for stored settings that can change at run time."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.errors import EXIT_USAGE, CommandError

if TYPE_CHECKING:
    from merganser.settings.settings import Settings
    from models.runtime.environment import Environment
    from resolvers.admin.settings import CurrentSetting
    from resolvers.context import Context

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ReasonOption = Annotated[
    str | None, typer.Option(help="Why; kept in its history and in the administrative log.")
]
BOOLEANS = {"true": True, "on": True, "false": False, "off": False}


def list_settings(
    part: Annotated[str | None, typer.Argument(help="Only keys that have this in them.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the stored settings there are: each with its value, and where that is from.

    What a server needs before it has a store is set by the environment: `merganser settings`.

    Example: merganser setting list retention
    """
    import json

    from merganser.commands.environment_run import run_in_environment
    from merganser.commands.terminal_tables import print_table

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> "list[CurrentSetting]":
        from merganser.server.environment_factory import root_context
        from resolvers.admin import settings

        return await settings.list_settings(root_context(environment), part)

    found = run_in_environment(run_operation)
    if as_json:
        typer.echo(
            json.dumps([_setting_as_json(each) for each in found], indent=2, ensure_ascii=False)
        )
        return
    rows = [
        (each.key, _value_text(each.value), "stored" if each.is_set else "default", each.type.value)
        for each in found
    ]
    print_table(("key", "value", "from", "type"), rows)


def print_setting(
    key: Annotated[str, typer.Argument(help="Key, as `merganser setting list` shows it.")],
    as_json: JsonOption = False,
) -> None:
    """Print the value of one stored setting; with --json all that is known of it.

    Example: merganser setting get submission.maxRecipients
    """
    import json

    from merganser.commands.environment_run import run_in_environment

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> "CurrentSetting | None":
        from merganser.server.environment_factory import root_context
        from resolvers.admin import settings

        return await settings.find_setting(root_context(environment), key)

    found = run_in_environment(run_operation)
    if found is None:
        raise CommandError(f"there is no setting {key}: `merganser setting list` shows all")
    typer.echo(
        json.dumps(_setting_as_json(found), indent=2, ensure_ascii=False)
        if as_json
        else _value_text(found.value)
    )


def set_setting(
    key: Annotated[str, typer.Argument(help="Key, as `merganser setting list` shows it.")],
    value: Annotated[
        str,
        typer.Argument(help='As in 50, "3 GiB", "14 days", P14D, off, null; else JSON or a text.'),
    ],
    reason: ReasonOption = None,
) -> None:
    """Store another value of a setting. Running servers go by it within seconds.

    Settings of your own begin with custom.

    Example: merganser setting set submission.maxRecipients 50

    Example: merganser setting set auth.tokenTtl "14 days" --reason "as agreed"
    """
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(environment: "Environment", _settings: "Settings") -> "CurrentSetting":
        from resolvers.admin import settings

        return await settings.set_setting(
            _root_context_with_reason(environment, reason), key, _parse_value(key, value)
        )

    typer.echo(f"{key} is {_value_text(run_in_environment(run_operation).value)}")


def unset_settings(
    keys: Annotated[
        list[str], typer.Argument(help="Keys, as `merganser setting list` shows them.")
    ],
    reason: ReasonOption = None,
) -> None:
    """Let settings have their defaults again, all or none. Those of your own are gone then.

    Example: merganser setting unset submission.maxRecipients
    """
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> "list[CurrentSetting]":
        from resolvers.admin import settings

        found, _ = await settings.reset_settings(
            _root_context_with_reason(environment, reason), keys
        )
        return found

    settings_by_key = {each.key: each for each in run_in_environment(run_operation)}
    for key in dict.fromkeys(keys):
        typer.echo(
            f"{key} is {_value_text(settings_by_key[key].value)}"
            if key in settings_by_key
            else f"{key} is gone"
        )


def _root_context_with_reason(environment: "Environment", reason: str | None) -> "Context":
    from merganser.server.environment_factory import root_context

    if reason and (len(reason) > 255 or not reason.isprintable()):  # noqa: PLR2004 - as of the API
        raise CommandError("--reason: at most 255 printable characters", exit_code=EXIT_USAGE)
    ctx = root_context(environment)
    ctx.reason = reason or None
    return ctx


def _parse_value(key: str, text: str) -> Any:
    """Parse the value of a setting from the command line to a JSON value."""
    import json

    from merganser.settings.units import parse_duration
    from models.quantities import format_duration
    from resolvers.admin.setting_definitions import DEFINITIONS, SettingType

    declared = DEFINITIONS.get(key)
    if declared is None:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    value: Any = text
    if declared.nullable and text == "null":
        value = None
    elif declared.type is SettingType.BOOLEAN:
        value = BOOLEANS.get(text.lower(), text)
    elif declared.type is SettingType.DURATION:
        with suppress(ValueError):  # otherwise ISO 8601 or invalid, which is checked later
            read: Any = parse_duration(text)
            value = format_duration(read)
    return value


def _value_text(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _setting_as_json(found: "CurrentSetting") -> dict[str, Any]:
    return {
        "key": found.key,
        "value": found.value,
        "kind": found.type.value,
        "custom": found.is_set,
        "default": found.default,
        "name": found.name,
        "description": found.description,
        "restart_required": found.restart_required,
    }


def setting_commands() -> typer.Typer:
    """Create the command group `setting`."""
    app = typer.Typer(help="List and change settings while a server runs.", no_args_is_help=True)
    app.command("list")(list_settings)
    app.command("get")(print_setting)
    app.command("set")(set_setting)
    app.command("unset")(unset_settings)
    return app
