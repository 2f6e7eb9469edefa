"""Tests of `merganser setting`."""

import pytest

from tests.support.clients.command_line import CommandLine

KEY = "submission.maxRecipients"


def test_setting_is_set_shown_and_unset(shell: CommandLine) -> None:
    assert shell("setting", "get", KEY).out == "400\n"
    assert shell("setting", "set", KEY, "50", "--reason", "spam").out == f"{KEY} is 50\n"
    assert shell("setting", "get", KEY).out == "50\n"
    setting = shell("setting", "get", KEY, "--json").json
    assert (setting["value"], setting["default"], setting["custom"]) == (50, 400, True)
    (listed,) = shell("setting", "list", "maxrecip", "--json").json
    assert listed == setting
    assert "stored" in shell("setting", "list", "maxRecipients").out
    assert shell("setting", "unset", KEY).out == f"{KEY} is 400\n"
    assert shell("setting", "unset", KEY).out == f"{KEY} is 400\n"
    assert "stored" not in shell("setting", "list").out


def test_environment_variable_sets_default_of_setting(shell: CommandLine) -> None:
    shell.set_settings(submission_max_recipients="7")
    assert shell("setting", "get", KEY).out == "7\n"
    shell("setting", "set", KEY, "9")
    assert shell("setting", "get", KEY).out == "9\n"


@pytest.mark.parametrize(
    ("key", "input_text", "expected"),
    [
        ("tokens.idleTimeout", "2 days", "P2D"), ("tokens.idleTimeout", "P1DT12H", "P1DT43200S"),
        ("users.defaultQuota", "3 GiB", str(3 << 30)), ("users.defaultQuota", "0", "0"),
        ("users.defaultDomain", "Example.ORG", "example.org"),
        ("users.defaultDomain", "null", "null"),
        ("quota.warningEmails", "off", "false"), ("quota.warningEmails", "True", "true"),
        ("custom.a", "5", "5"), ("custom.a", "five", "five"), ("custom.a", '["x", true]',
        '["x", true]'),
    ],
)  # fmt: skip
def test_setting_values_are_parsed_and_shown(
    shell: CommandLine, key: str, input_text: str, expected: str
) -> None:
    assert shell("setting", "set", key, input_text).out == f"{key} is {expected}\n"
    assert shell("setting", "get", key).out == f"{expected}\n"


def test_unset_deletes_custom_setting(shell: CommandLine) -> None:
    shell("setting", "set", "custom.a", "5")
    assert shell("setting", "unset", "custom.a").out == "custom.a has its default again.\n"
    result = shell("setting", "get", "custom.a")
    assert (result.code, result.err) == (
        1,
        "merganser: Setting not found: custom.a. `merganser setting list` lists all settings.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "error_text"),
    [
        (("set", KEY, "many"), "value: submission.maxRecipients: Must be an integer below 2^53."),
        (("set", KEY, "0"), "submission.maxRecipients must be at least 1."),
        (
            ("set", "tokens.idleTimeout", "soon"),
            "Must be an ISO 8601 duration such as P30D or PT20M.",
        ),
        (("set", "nothing", "1"), "key: The setting does not exist."),
        (("unset", "nothing"), "settings: The setting does not exist."),
        (
            ("set", KEY, "5", "--reason", "a\tb"),
            "--reason: Must have at most 255 printable characters.",
        ),
        (("set", "custom.a", "{}"), "value: A custom value is"),
        (("set", "custom.a", "[" * 100_000), "at most 4096 bytes"),
    ],
)
def test_setting_error_is_reported_in_one_line(
    shell: CommandLine, arguments: tuple[str, ...], error_text: str
) -> None:
    result = shell("setting", *arguments)
    assert result.code in (1, 2)
    assert error_text in result.err
    assert len(result.err.splitlines()) == 1


def test_invalid_stored_setting_is_reported_and_ignored(shell: CommandLine) -> None:
    import json
    import sqlite3

    with sqlite3.connect(shell.data / "mail.db") as connection:
        for key, value in ((KEY, "many"), ("of.another.version", 1)):
            stored_value = json.dumps({"value": value})
            row = (key, stored_value, "2030-01-01 00:00:00")
            connection.execute(
                "INSERT INTO setting_values (key, value, updated_at) VALUES (?, ?, ?)", row
            )
    connection.close()
    result = shell("setting", "get", KEY)
    assert (result.code, result.out) == (0, "400\n")
    assert result.err.count("Invalid stored setting; using the default") == 2
    assert "of.another.version" in result.err
