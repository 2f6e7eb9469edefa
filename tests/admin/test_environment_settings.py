"""Settings of the environment: parsing, limits, messages and hidden secrets."""

from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.settings import Settings, read_settings, settings_table
from models.runtime.options import Options

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def remove_merganser_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("MERGANSER_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("address", [":8025", "8025", "localhost", "localhost:", "[::1]"])
def test_listener_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        Settings(http=address)
    with pytest.raises(ValidationError, match="pattern"):
        Settings(lmtp=address)


def test_printed_table_equals_the_documentation() -> None:
    assert (REPOSITORY / "docs" / "settings.md").read_text() == settings_table() + "\n"


def test_every_option_is_a_setting_with_the_same_default() -> None:
    assert {option.name for option in fields(Options)} <= set(Settings.model_fields)
    assert Settings().options() == Options()


def test_setting_for_crash_tests_is_not_documented() -> None:
    assert "MERGANSER_FAULT" not in settings_table()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("MERGANSER_STOER", "MERGANSER_STORE"), ("MERGANSER_HTTPS", "MERGANSER_HTTP")],
)
def test_misspelled_variable_is_reported_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(
        CommandError, match=f"{name} is no setting of ours; did you mean {nearest}"
    ) as raised:
        read_settings()
    assert raised.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HTTP", ":80", "write host:port"),
        ("STORE", "mysql://localhost/mail", "write sqlite:///path"),
        ("DEFAULT_QUOTA", "much", "write a size such as 64 MiB"),
        ("TOKEN_IDLE", "14", "write a time such as"),
        ("LOG_LEVEL", "LOUD", "input should be 'DEBUG'"),
        ("BOOTSTRAP_KEY", "hunter2", "it needs 16 characters"),
        ("SMTP", "here", "write host:port"),
        ("SMTP_PROXIES", "10.0.0.0/40", "write addresses and networks"),
        ("GREYLIST_ALLOW", "mx.example.org", "write addresses and networks"),
        ("SMTP_TIMEOUT", "0 s", "input should be greater than or equal to 1 second"),
        ("BULK", "0", "input should be greater than or equal to 1"),
    ],
)
def test_invalid_value_is_reported_without_the_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"MERGANSER_{name}", value)
    with pytest.raises(CommandError) as raised:
        read_settings()
    assert raised.value.message.startswith(f"MERGANSER_{name} is wrong: {message}")
    assert "\n" not in raised.value.message
    assert "hunter2" not in raised.value.message


def test_sizes_durations_and_lists_are_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "DEFAULT_QUOTA": "1.5 GiB",
        "MESSAGE_MAX": "20MB",
        "UNDO_WINDOW": "90 s",
        "TOKEN_LIFE": "1 week",
        "ORIGINS": "https://a.example, https://b.example",
        "DATA": "/srv/mail",
        "DEFAULT_DOMAIN": "",
    }.items():
        monkeypatch.setenv(f"MERGANSER_{name}", value)
    settings = read_settings()
    assert (settings.default_quota, settings.message_max) == (3 << 29, 20_000_000)
    assert (settings.undo_window, settings.token_life) == (
        timedelta(seconds=90),
        timedelta(days=7),
    )
    assert settings.origins == ("https://a.example", "https://b.example")
    assert settings.store == "sqlite+aiosqlite:////srv/mail/merganser.db"
    assert settings.blobs == "/srv/mail/blobs"
    assert settings.default_domain is None  # an empty variable counts as not set


def test_store_url_gets_the_async_driver() -> None:
    url = "postgresql://mail@localhost/mail"
    assert Settings(store=url).store == "postgresql+asyncpg://mail@localhost/mail"
    assert Settings(store="sqlite:///x.db").store == "sqlite+aiosqlite:///x.db"


def test_repr_of_settings_hides_secrets() -> None:
    text = repr(
        Settings(
            bootstrap_key="b" * 16,  # type: ignore[arg-type]
            secret="s" * 32,  # type: ignore[arg-type]
            next_hop="smtp://u:pppp@h:1",  # type: ignore[arg-type]
        )
    )
    assert not any(secret in text for secret in ("bbbb", "ssss", "pppp"))


def test_spam_headers_are_limited_to_known_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("none", ()), ("x-spam-FLAG,X-Spam", ("X-Spam-Flag", "X-Spam"))):
        monkeypatch.setenv("MERGANSER_SPAM_HEADERS", text)
        assert read_settings().options().spam_headers == expected
    monkeypatch.setenv("MERGANSER_SPAM_HEADERS", "X-Spam X-Other")
    with pytest.raises(
        CommandError, match="MERGANSER_SPAM_HEADERS is wrong: write some of X-Rspamd"
    ):
        read_settings()


@pytest.mark.parametrize("origin", ["mail.example.org", "https://mail.example.org/", "ftp://x"])
def test_invalid_webauthn_origin_is_refused(origin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGANSER_WEBAUTHN_ORIGINS", f"https://a.example {origin}")
    with pytest.raises(CommandError, match="without a slash at its end"):
        read_settings()
    monkeypatch.setenv("MERGANSER_WEBAUTHN_ORIGINS", "https://A.example http://localhost:3000")
    assert read_settings().options().webauthn_origins == (
        "https://a.example",
        "http://localhost:3000",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RSPAMD", "127.0.0.1:11333"),
        ("RSPAMD", "ftp://127.0.0.1"),
        ("RSPAMD", "http://me:secret@127.0.0.1"),
        ("RSPAMD", "http://127.0.0.1:99999"),
        ("RSPAMD_LEARN", "http://127.0.0.1/?x"),
        ("RSPAMD_DOWN", "drop"),
        ("RSPAMD_TIMEOUT", "5 min"),
        ("RSPAMD_TIMEOUT", "0 s"),
        ("CLAMD", "clamd.sock"),
        ("CLAMD", "unix:clamd.sock"),
        ("CLAMD", ":3310"),
        ("CLAMD", "127.0.0.1:99999"),
        ("VIRUS", "keep"),
        ("SENT_SCAN", "on"),
    ],
)
def test_invalid_scanner_setting_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MERGANSER_{name}", value)
    with pytest.raises(CommandError, match=f"MERGANSER_{name} is wrong"):
        read_settings()


def test_scanner_settings_are_read_and_hide_the_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "RSPAMD": "https://rspamd.example:11333/",
        "RSPAMD_PASSWORD": "hush-hush",
        "CLAMD": "unix:/run/clamav/clamd.ctl",
        "CLAMD_DOWN": "defer",
    }.items():
        monkeypatch.setenv(f"MERGANSER_{name}", value)
    options = read_settings().options()
    assert (options.rspamd, options.clamd) == (
        "https://rspamd.example:11333/",
        "unix:/run/clamav/clamd.ctl",
    )
    assert (options.rspamd_down, options.clamd_down) == ("accept", "defer")
    assert options.rspamd_password is not None
    assert "hush" not in repr(options)


def test_acme_account_key_is_validated_and_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGANSER_ACME_EAB_KEY_ID", "kid-1")
    for invalid_key in ("hush-hush", "hush" * 10 + "+/", "hush " * 10, "hush" * 300):
        monkeypatch.setenv("MERGANSER_ACME_EAB_HMAC", invalid_key)
        with pytest.raises(CommandError, match="MERGANSER_ACME_EAB_HMAC is wrong: ") as raised:
            read_settings()
        assert "hush" not in str(raised.value)
    monkeypatch.setenv("MERGANSER_ACME_EAB_HMAC", "hush" * 10)
    options = read_settings().options()
    assert options.acme_eab_hmac is not None
    assert options.acme_eab_hmac.get_secret_value() == "hush" * 10
    assert options.acme_eab_key_id == "kid-1"
    assert "hush" not in repr(options)
    monkeypatch.setenv("MERGANSER_ACME_EAB_KEY_ID", "a b")
    with pytest.raises(CommandError, match="MERGANSER_ACME_EAB_KEY_ID is wrong: "):
        read_settings()
