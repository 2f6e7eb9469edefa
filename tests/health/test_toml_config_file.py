"""The settings file in TOML: kinds of values, precedence, and errors that name the line."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from merganser.errors import CommandError
from merganser.settings.settings import read_settings
from tests.support.case_loop import each_case


@pytest.fixture
def toml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("MERGANSER_"):
            monkeypatch.delenv(name)
    file = tmp_path / "merganser.toml"
    monkeypatch.setenv("MERGANSER_CONFIG", str(file))
    return file


def test_values_of_each_kind_are_read(toml_file: Path) -> None:
    toml_file.write_text(
        "# of this server\n"
        'hostname = "mx.example.org"\n'
        "oauth_registration = true\n"
        "auto_create_domains = false\n"
        "bulk_max_items = 7\n"
        "trace_sample_ratio = 0.5\n"
        'message_max_size = "64 MiB"\n'
        'queue_lifetime = "3 days"\n'
        'queue_retry_delays = ["1 min", "10 min"]\n'
        'cors_origins = ["https://a.example", "https://b.example"]\n'
        'trusted_proxies = "10.0.0.1 10.0.0.2"\n'
        "welcome_folder = ''\n"
        'users_default_domain = ""\n'
    )
    settings = read_settings()
    assert settings.hostname == "mx.example.org"
    assert (settings.oauth_registration, settings.auto_create_domains) == (True, False)
    assert (settings.bulk_max_items, settings.trace_sample_ratio) == (7, 0.5)
    assert settings.message_max_size == 64 << 20
    assert settings.queue_lifetime == timedelta(days=3)
    assert settings.queue_retry_delays == (timedelta(minutes=1), timedelta(minutes=10))
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.trusted_proxies == ("10.0.0.1", "10.0.0.2")
    assert (settings.welcome_folder, settings.users_default_domain) == (None, None)


def test_environment_precedes_toml(toml_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml_file.write_text('hostname = "mx.example.org"\nlog_level = "WARNING"\n')
    monkeypatch.setenv("MERGANSER_HOSTNAME", "mx2.example.org")
    monkeypatch.setenv("MERGANSER_LOG_LEVEL", "")  # as if it were not set
    settings = read_settings()
    assert (settings.hostname, settings.log_level) == ("mx2.example.org", "WARNING")


def test_error_names_the_line_and_no_value(toml_file: Path) -> None:
    cases: list[tuple[bytes, str]] = [
        (b'hostnam = "x"', "line 1: MERGANSER_HOSTNAM is not a setting. Did you mean"),
        (b'\n\nlog_level = "LOUD"', "line 3: MERGANSER_LOG_LEVEL is wrong"),
        (b'metrics_key = "short"', "line 1: MERGANSER_METRICS_KEY is wrong"),
        (b"\nbulk_max_items = 0", "line 2: MERGANSER_BULK_MAX_ITEMS is wrong"),
        (b'cors_origins = ["https://a.example", "a b"]', "line 1: MERGANSER_CORS_ORIGINS is wr"),
        (b'hostname = ["a", "b"]', "line 1: MERGANSER_HOSTNAME is wrong"),
        (b'\nMERGANSER_HOSTNAME = "x"', "line 2: write the key hostname instead of MERGANSER_HO"),
        (b'merganser_hostname = "x"', "line 1: write the key hostname instead of merganser_ho"),
        (b'Hostname = "x"', "line 1: write the key hostname instead of Hostname."),
        (b"# a\nhostname", "line 2: this is no TOML: "),
        (b"hostname = LOUD", "line 1: this is no TOML: "),
        (b'hostname = "short', "line 1: this is no TOML: "),
        (b'hostname = "a"\nhostname = "b"', "line 2: this is no TOML: "),
        (b'\n[smtp]\nlisten = "x"', "line 2: write a text such as"),
        (b'smtp.listen = "x"', "line 1: write a text such as"),
        (b"queue_lifetime = 2026-01-01", "line 1: write a text such as"),
        (b'trusted_proxies = [["a"]]', "line 1: write a text such as"),
        (b'hostname = "a\\u0000b"', "line 1: the value has a control character."),
        (b'# a\nhostname = "\xff\xfe"', "line 2: the text is not UTF-8."),
        (b"bulk_max_items = " + b"9" * 5000, "line 1: a number has too many digits."),
        (b"cors_origins = " + b"[" * 9000, "line 1: lists or tables are nested too deeply."),
        (b'config = "/etc/other"', "line 1: MERGANSER_CONFIG must be a variable"),
    ]
    for case in each_case(cases):
        with case as (text, expected):
            toml_file.write_bytes(text)
            with pytest.raises(CommandError) as error:
                read_settings()
            assert f"{toml_file}, {expected}" in error.value.message
            assert "short" not in error.value.message
            assert "LOUD" not in error.value.message
