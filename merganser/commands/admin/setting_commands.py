"""Implementations of the commands `merganser setting …`."""

import json
from contextlib import suppress
from typing import Any

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.commands.terminal_output import print_json, print_table
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server.environment_factory import root_context
from merganser.settings.settings import Settings
from merganser.settings.units import parse_duration_if_text
from models.quantities import format_iso_duration
from models.runtime.environment import Environment
from resolvers.admin import settings as stored_settings
from resolvers.admin.setting_definitions import DEFINITIONS
from resolvers.admin.setting_types import SettingKind
from resolvers.admin.settings import CurrentSetting
from resolvers.context import Context

BOOLEANS = {"true": True, "on": True, "false": False, "off": False}
MAX_REASON_CHARACTERS = 255  # as in the API


def list_settings(part: str | None, as_json: bool) -> None:
    """Print the stored settings with this part in their key."""
    settings = run_in_environment(
        lambda environment, _settings: stored_settings.load_current_settings(
            root_context(environment), part
        )
    )
    if as_json:
        print_json([_setting_as_json(setting) for setting in settings])
        return
    rows = [
        (
            setting.key,
            _value_text(setting.value),
            "stored" if setting.is_set else "default",
            setting.type.value,
        )
        for setting in settings
    ]
    print_table(("key", "value", "from", "type"), rows)


def print_setting(key: str, as_json: bool) -> None:
    """Print the value of a setting."""
    setting = run_in_environment(
        lambda environment, _settings: stored_settings.find_setting(root_context(environment), key)
    )
    if setting is None:
        raise CommandError(
            f"Setting not found: {key}. `merganser setting list` lists all settings."
        )
    if as_json:
        print_json(_setting_as_json(setting))
    else:
        typer.echo(_value_text(setting.value))


def set_setting(key: str, value: str, reason: str | None) -> None:
    """Store the value of a setting, and print it."""

    async def store_value(environment: Environment, _settings: Settings) -> CurrentSetting:
        return await stored_settings.store_setting_value(
            _root_context_with_valid_reason(environment, reason),
            key,
            _parse_value_or_return_unchanged(key, value),
        )

    setting = run_in_environment(store_value)
    typer.echo(f"{key} is {_value_text(setting.value)}")


def unset_settings(keys: list[str], reason: str | None) -> None:
    """Delete the stored values of settings, and print the defaults."""

    async def reset_settings(environment: Environment, _settings: Settings) -> list[CurrentSetting]:
        settings, _ = await stored_settings.reset_settings(
            _root_context_with_valid_reason(environment, reason), keys
        )
        return settings

    settings_by_key = {setting.key: setting for setting in run_in_environment(reset_settings)}
    for key in dict.fromkeys(keys):
        typer.echo(
            f"{key} is {_value_text(settings_by_key[key].value)}"
            if key in settings_by_key
            else f"{key} has its default again."
        )


def _root_context_with_valid_reason(environment: Environment, reason: str | None) -> Context:
    if reason and (len(reason) > MAX_REASON_CHARACTERS or not reason.isprintable()):
        raise CommandError(
            f"--reason: Must have at most {MAX_REASON_CHARACTERS} printable characters.",
            exit_code=EXIT_USAGE,
        )
    ctx = root_context(environment)
    ctx.reason = reason or None
    return ctx


def _parse_value_or_return_unchanged(key: str, text: str) -> Any:
    """Parse the value of a setting from the command line to a JSON value."""
    declared = DEFINITIONS.get(key)
    if declared is None:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    value: Any = text
    if declared.nullable and text == "null":
        value = None
    elif declared.type is SettingKind.BOOLEAN:
        value = BOOLEANS.get(text.lower(), text)
    elif declared.type is SettingKind.DURATION:
        with suppress(ValueError):  # otherwise ISO 8601 or invalid, which is checked later
            read: Any = parse_duration_if_text(text)
            value = format_iso_duration(read)
    return value


def _value_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _setting_as_json(setting: CurrentSetting) -> dict[str, Any]:
    return {
        "key": setting.key,
        "value": setting.value,
        "kind": setting.type.value,
        "custom": setting.is_set,
        "default": setting.default,
        "name": setting.name,
        "description": setting.description,
        "restart_required": setting.restart_required,
    }
