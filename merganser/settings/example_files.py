"""Commented examples of the settings file and of the file of secrets, made from the settings."""

import json
import re
import textwrap
from typing import get_args

from pydantic import SecretStr

from merganser.settings.settings import PREFIX, Settings
from merganser.settings.settings_page import (
    SettingDescription,
    describe_settings_by_topic,
    format_setting_value,
    schema_extra,
)

LINE_WIDTH = 98
SETTINGS_HEADING = """\
Settings of Merganser in TOML. The key of the variable MERGANSER_HOSTNAME is hostname. Remove the \
sign # before a key to set its value. Each line shows the default, or "" if there is no fixed one. \
An empty value has the same effect as no line. Write no secrets into this file: see the file \
`secrets` beside it. Variables of the environment precede this file. `systemctl reload merganser` \
reads it again."""
SECRETS_HEADING = """\
Settings of Merganser with secrets: lines VARIABLE='value' of a shell. Only root can read this \
file, and systemd passes it to the server. `systemctl restart merganser` reads it again."""
KEYS_OF_BUCKETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
SET_BY_UNIT = frozenset({f"{PREFIX}DATA", f"{PREFIX}CONFIG"})
# The URL of the database has a password, unless it is SQLite.
URLS_WITH_PASSWORDS = frozenset({f"{PREFIX}DATABASE_URL"})


def example_settings_file() -> str:
    """Return a settings file in which each setting without a secret is a comment."""
    lines = _comment_lines(SETTINGS_HEADING)
    for topic, settings in describe_settings_by_topic().items():
        described = [setting for setting in settings if not _is_in_another_file(setting)]
        if described:
            lines += ["", f"## {topic}"]
        for setting in described:
            name = _setting_name(setting)
            lines += ["", *_setting_comment_lines(setting), f"#{name} = {_default_as_toml(name)}"]
    return "\n".join(lines) + "\n"


def example_secrets_file() -> str:
    """Return a file of secrets in which each setting with a secret is a comment."""
    lines = _comment_lines(SECRETS_HEADING)
    for settings in describe_settings_by_topic().values():
        for setting in filter(_is_secret, settings):
            lines += ["", *_setting_comment_lines(setting), f"#{setting.variable}=''"]
    lines += ["", "# Keys of an S3 bucket in the URL of an object store."]
    lines += [f"#{variable}=''" for variable in KEYS_OF_BUCKETS]
    return "\n".join(lines) + "\n"


def _is_in_another_file(setting: SettingDescription) -> bool:
    return setting.variable in SET_BY_UNIT or _is_secret(setting)


def _is_secret(setting: SettingDescription) -> bool:
    annotation = Settings.model_fields[_setting_name(setting)].annotation
    is_secret_type = SecretStr in (annotation, *get_args(annotation))
    return is_secret_type or setting.variable in URLS_WITH_PASSWORDS


def _setting_name(setting: SettingDescription) -> str:
    return setting.variable.removeprefix(PREFIX).lower()


def _default_as_toml(name: str) -> str:
    """Write the default of a setting as TOML: "" if it depends on other settings or files."""
    field_info = Settings.model_fields[name]
    default = field_info.default
    if isinstance(default, bool):
        return "true" if default else "false"
    if "default" in schema_extra(field_info) or default is None:
        return '""'
    if isinstance(default, tuple):
        return f"[{', '.join(_toml_value(format_setting_value(v, field_info)) for v in default)}]"
    return _toml_value(format_setting_value(default, field_info))


def _toml_value(text: str) -> str:
    is_number = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text)
    return text if is_number else json.dumps(text, ensure_ascii=False)  # also a string of TOML


def _setting_comment_lines(setting: SettingDescription) -> list[str]:
    return [
        *_comment_lines(setting.meaning),
        *_comment_lines(f"Value: {setting.values}. Default: {setting.default}."),
    ]


def _comment_lines(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, LINE_WIDTH, break_long_words=False)]
