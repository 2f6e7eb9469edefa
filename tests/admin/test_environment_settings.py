"""Settings of the environment: parsing, limits, messages and hidden secrets."""

from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.settings import Settings, read_settings
from merganser.settings.settings_page import settings_page
from merganser.settings.suggestions import MAX_SUGGESTIONS, suggest_settings
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
        Settings(http_listen=address)
    with pytest.raises(ValidationError, match="pattern"):
        Settings(lmtp_listen=address)


def test_printed_page_equals_the_documentation() -> None:
    assert (REPOSITORY / "docs" / "settings.md").read_text() == settings_page() + "\n"


def test_every_option_is_a_setting_with_the_same_default() -> None:
    assert {option.name for option in fields(Options)} <= set(Settings.model_fields)
    assert Settings().options() == Options()


def test_setting_for_crash_tests_is_not_documented() -> None:
    assert "MERGANSER_FAULT" not in settings_page()


@pytest.mark.parametrize(
    ("wrong_name", "setting"),
    [
        ("DATABSE_URL", "DATABASE_URL"),
        ("HTTPS_LISTEN", "HTTP_LISTEN"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("DEBUG", "LOG_LEVEL"),
        ("MAX_MESSAGE_SIZE", "MESSAGE_MAX_SIZE"),
        ("QUOTA", "USERS_DEFAULT_QUOTA"),
        ("DB", "DATABASE_URL"),
        ("POSTGRES_HOST", "DATABASE_URL"),
        ("REDIS_URL", "EVENT_BUS_URL"),
        ("DATA_DIR", "DATA"),
        ("S3_BUCKET", "OBJECT_STORE_URL"),
        ("PORT", "HTTP_LISTEN"),
        ("SMTP_PORT", "SMTP_LISTEN"),
        ("LMTP_PORT", "LMTP_LISTEN"),
        ("SSL_CERT", "TLS_CERT"),
        ("TLS_PRIVATE_KEY", "TLS_KEY"),
        ("LETSENCRYPT_EMAIL", "ACME_CONTACT"),
        ("SMARTHOST", "NEXT_HOP"),
        ("CLAMAV_HOST", "CLAMD_ADDRESS"),
        ("BASE_URL", "PUBLIC_URL"),
        ("SECRET_KEY", "SIGNING_SECRET"),
        ("ADMIN_PASSWORD", "BOOTSTRAP_KEY"),
        ("CORS", "CORS_ORIGINS"),
        ("DNS_SERVER", "DNS_RESOLVER"),
        ("SESSION_TIMEOUT", "TOKENS_IDLE_TIMEOUT"),
        ("METRICS_TOKEN", "METRICS_KEY"),
        ("TRASH_DAYS", "DELETED_MESSAGES_RETENTION"),
        ("PROXY", "TRUSTED_PROXIES"),
    ],
)
def test_unknown_name_suggests_settings_by_spelling_and_meaning(
    wrong_name: str, setting: str
) -> None:
    descriptions = {name: field.description or "" for name, field in Settings.model_fields.items()}
    suggestions = suggest_settings(wrong_name, descriptions)
    assert setting.lower() in suggestions
    assert len(suggestions) <= MAX_SUGGESTIONS


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("MERGANSER_DATABSE_URL", " Did you mean MERGANSER_DATABASE_URL?"),
        (
            "MERGANSER_PROXY",
            " Did you mean MERGANSER_TRUSTED_PROXIES or MERGANSER_SMTP_TRUSTED_PROXIES?",
        ),
        (
            "MERGANSER_MAX_CONNECTIONS",
            " Did you mean MERGANSER_CONNECTORS_MAX_RUNS, "
            "MERGANSER_CONNECTORS_MAX_RUNS_PER_HOST or "
            "MERGANSER_SMTP_CONNECTIONS?",
        ),
        ("MERGANSER_XYZZY", ""),
        ("MERGANSER_", ""),
    ],
)
def test_unknown_variable_is_an_error_with_suggestions(
    monkeypatch: pytest.MonkeyPatch, name: str, question: str
) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(CommandError) as raised:
        read_settings()
    assert str(raised.value) == (
        f"{name} is not a setting.{question} `merganser settings` lists all settings."
    )
    assert raised.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HTTP_LISTEN", ":80", "write host:port"),
        ("DATABASE_URL", "mysql://localhost/mail", "write sqlite:///path"),
        ("USERS_DEFAULT_QUOTA", "much", "write a size such as 64 MiB"),
        ("TOKENS_IDLE_TIMEOUT", "14", "write a time such as"),
        ("LOG_LEVEL", "LOUD", "input should be 'DEBUG'"),
        ("BOOTSTRAP_KEY", "hunter2", "it needs 16 characters"),
        ("SMTP_LISTEN", "here", "write host:port"),
        ("SMTP_TRUSTED_PROXIES", "10.0.0.0/40", "write addresses and networks"),
        ("GREYLIST_EXEMPT_NETWORKS", "mx.example.org", "write addresses and networks"),
        ("SMTP_IDLE_TIMEOUT", "0 s", "input should be greater than or equal to 1 second"),
        ("BULK_MAX_ITEMS", "0", "input should be greater than or equal to 1"),
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


@pytest.mark.parametrize(
    ("origin", "right_form"),
    [
        ("localhost:3000", "http://localhost:3000"),
        ("localhost", "http://localhost"),
        ("localhost:*", "http://localhost:*"),
        ("app.example.org", "https://app.example.org"),
        ("https://app.example.org/", "https://app.example.org"),
        ("https://app.example.org/mail?a=1", "https://app.example.org"),
        ("https://App.example.org:443", "https://app.example.org"),
        ("https://*.example.org", "scheme, host and port, such as https://app.example.org"),
        ("https://", "scheme, host and port, such as https://app.example.org"),
        ("none", "scheme, host and port, such as https://app.example.org"),
        ("/", "scheme, host and port, such as https://app.example.org"),
    ],
)
def test_wrong_cors_origin_is_refused_with_the_right_form(
    monkeypatch: pytest.MonkeyPatch, origin: str, right_form: str
) -> None:
    monkeypatch.setenv("MERGANSER_CORS_ORIGINS", f"https://a.example {origin}")
    with pytest.raises(CommandError) as raised:
        read_settings()
    assert raised.value.message == (
        f"MERGANSER_CORS_ORIGINS is wrong: {origin!r} is no origin that a browser sends: "
        f"write {right_form}"
    )
    assert raised.value.exit_code == EXIT_USAGE


def test_right_cors_origins_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    origins = (
        "https://a.example", "http://localhost:3000", "http://localhost:*", "http://[::1]:8080",
        "https://a.example:80", "capacitor://localhost", "moz-extension://3e4f-a1", "*", "null",
    )  # fmt: skip
    monkeypatch.setenv("MERGANSER_CORS_ORIGINS", " ".join(origins))
    assert read_settings().cors_origins == origins


def test_sizes_durations_and_lists_are_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "USERS_DEFAULT_QUOTA": "1.5 GiB",
        "MESSAGE_MAX_SIZE": "20MB",
        "UNDO_WINDOW": "90 s",
        "TOKENS_MAX_AGE": "1 week",
        "CORS_ORIGINS": "https://a.example, https://b.example",
        "DATA": "/srv/mail",
        "USERS_DEFAULT_DOMAIN": "",
    }.items():
        monkeypatch.setenv(f"MERGANSER_{name}", value)
    settings = read_settings()
    assert (settings.users_default_quota, settings.message_max_size) == (3 << 29, 20_000_000)
    assert (settings.undo_window, settings.tokens_max_age) == (
        timedelta(seconds=90),
        timedelta(days=7),
    )
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.database_url == "sqlite+aiosqlite:////srv/mail/merganser.db"
    assert settings.object_store_url == "/srv/mail/blobs"
    assert settings.users_default_domain is None  # an empty variable counts as not set


def test_store_url_gets_the_async_driver() -> None:
    url = "postgresql://mail@localhost/mail"
    assert Settings(database_url=url).database_url == "postgresql+asyncpg://mail@localhost/mail"
    assert Settings(database_url="sqlite:///x.db").database_url == "sqlite+aiosqlite:///x.db"


def test_repr_of_settings_hides_secrets() -> None:
    text = repr(
        Settings(
            bootstrap_key="b" * 16,  # type: ignore[arg-type]
            signing_secret="s" * 32,  # type: ignore[arg-type]
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
        ("RSPAMD_URL", "127.0.0.1:11333"),
        ("RSPAMD_URL", "ftp://127.0.0.1"),
        ("RSPAMD_URL", "http://me:secret@127.0.0.1"),
        ("RSPAMD_URL", "http://127.0.0.1:99999"),
        ("RSPAMD_LEARN_URL", "http://127.0.0.1/?x"),
        ("RSPAMD_ON_FAILURE", "drop"),
        ("RSPAMD_TIMEOUT", "5 min"),
        ("RSPAMD_TIMEOUT", "0 s"),
        ("CLAMD_ADDRESS", "clamd.sock"),
        ("CLAMD_ADDRESS", "unix:clamd.sock"),
        ("CLAMD_ADDRESS", ":3310"),
        ("CLAMD_ADDRESS", "127.0.0.1:99999"),
        ("VIRUS_ACTION", "keep"),
        ("OUTBOUND_SCAN", "on"),
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
        "RSPAMD_URL": "https://rspamd.example:11333/",
        "RSPAMD_PASSWORD": "hush-hush",
        "CLAMD_ADDRESS": "unix:/run/clamav/clamd.ctl",
        "CLAMD_ON_FAILURE": "defer",
    }.items():
        monkeypatch.setenv(f"MERGANSER_{name}", value)
    options = read_settings().options()
    assert (options.rspamd_url, options.clamd_address) == (
        "https://rspamd.example:11333/",
        "unix:/run/clamav/clamd.ctl",
    )
    assert (options.rspamd_on_failure, options.clamd_on_failure) == ("accept", "defer")
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
