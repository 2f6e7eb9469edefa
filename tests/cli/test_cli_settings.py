"""`merganser setting`."""

import pytest

from tests.support.clients.command_line import CommandLine

KEY = "submission.maxRecipients"


def test_a_setting_is_set_shown_and_unset(shell: CommandLine) -> None:
    assert shell("setting", "get", KEY).out == "400\n"
    assert shell("setting", "set", KEY, "50", "--reason", "spam").out == f"{KEY} is 50\n"
    assert shell("setting", "get", KEY).out == "50\n"
    found = shell("setting", "get", KEY, "--json").json
    assert (found["value"], found["default"], found["custom"]) == (50, 400, True)
    (listed,) = shell("setting", "list", "maxrecip", "--json").json
    assert listed == found
    assert "stored" in shell("setting", "list", "maxRecipients").out
    assert shell("setting", "unset", KEY).out == f"{KEY} is 400\n"
    assert shell("setting", "unset", KEY).out == f"{KEY} is 400\n"
    assert "stored" not in shell("setting", "list").out


def test_the_environment_says_the_default(shell: CommandLine) -> None:
    shell.set_settings(max_recipients="7")
    assert shell("setting", "get", KEY).out == "7\n"
    shell("setting", "set", KEY, "9")
    assert shell("setting", "get", KEY).out == "9\n"


@pytest.mark.parametrize(
    ("key", "given", "shown"),
    [
        ("auth.tokenTtl", "2 days", "P2D"), ("auth.tokenTtl", "P1DT12H", "P1DT43200S"),
        ("quota.default", "3 GiB", str(3 << 30)), ("quota.default", "0", "0"),
        ("domains.default", "Example.ORG", "example.org"), ("domains.default", "null", "null"),
        ("limits.letters", "off", "false"), ("limits.letters", "True", "true"),
        ("custom.a", "5", "5"), ("custom.a", "five", "five"), ("custom.a", '["x", true]',
        '["x", true]'),
    ],
)  # fmt: skip
def test_values_are_written_as_people_write_them(
    shell: CommandLine, key: str, given: str, shown: str
) -> None:
    assert shell("setting", "set", key, given).out == f"{key} is {shown}\n"
    assert shell("setting", "get", key).out == f"{shown}\n"


def test_ones_own_are_gone_when_unset(shell: CommandLine) -> None:
    shell("setting", "set", "custom.a", "5")
    assert shell("setting", "unset", "custom.a").out == "custom.a is gone\n"
    said = shell("setting", "get", "custom.a")
    assert (said.code, said.err) == (
        1,
        "merganser: there is no setting custom.a: `merganser setting list` shows all\n",
    )


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("set", KEY, "many"), "value: submission.maxRecipients: not a whole number"),
        (("set", KEY, "0"), "is 1 at least"),
        (("set", "auth.tokenTtl", "soon"), "not an ISO 8601 duration"),
        (("set", "nothing", "1"), "key: there is no such setting"),
        (("unset", "nothing"), "keys: there is no such setting"),
        (("set", KEY, "5", "--reason", "a\tb"), "--reason: at most 255 printable"),
        (("set", "custom.a", "{}"), "value: a text, a number"),
        (("set", "custom.a", "[" * 100_000), "at most 4096 bytes"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    shell: CommandLine, words: tuple[str, ...], part: str
) -> None:
    said = shell("setting", *words)
    assert said.code in (1, 2)
    assert part in said.err
    assert len(said.err.splitlines()) == 1


def test_a_stored_value_of_no_use_is_told_and_not_in_force(shell: CommandLine) -> None:
    import json
    import sqlite3

    with sqlite3.connect(shell.data / "mail.db") as store:
        for key, value in ((KEY, "many"), ("of.another.version", 1)):
            held = json.dumps({"value": value})
            row = (key, held, "2030-01-01 00:00:00")
            store.execute("INSERT INTO settings (key, value, updated_at) VALUES (?, ?, ?)", row)
    store.close()
    said = shell("setting", "get", KEY)
    assert (said.code, said.out) == (0, "400\n")
    assert said.err.count("a stored setting is of no use") == 2
    assert "of.another.version" in said.err
