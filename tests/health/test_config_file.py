"""The settings file: precedence of the environment, and errors that name the line."""

import asyncio
import os
import ssl
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from bench.servers.ports import free_port
from merganser.errors import CommandError
from merganser.server.components.listener_component import running_listeners
from merganser.server.config_reload import RELOADABLE_FIELDS, ConfigReloader, with_reloadable_values
from merganser.server.processes.process_roles import WHOLE_SERVER
from merganser.server.smtp_listeners import load_certificates_and_define_listeners
from merganser.settings.demo_settings import demo_settings
from merganser.settings.settings import Settings, read_settings
from models.runtime.environment import Environment
from models.runtime.options import NO_NAME_SERVER
from models.runtime.server_control import InvalidConfig
from resolvers.auth.passwords.breached_passwords import is_breached
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.mail_servers.smtp_client import (
    CertificateAuthority,
    connect_with_implicit_tls,
)


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("MERGANSER_"):
            monkeypatch.delenv(name)
    file = tmp_path / "settings"
    monkeypatch.setenv("MERGANSER_CONFIG", str(file))
    return file


def write_lines(config_file: Path, text: str) -> None:
    config_file.write_text(text)


def test_environment_precedes_the_file(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(
        config_file,
        "# of this server\n\nMERGANSER_HOSTNAME=mx.example.org\r\n"
        "MERGANSER_LOG_LEVEL = \"WARNING\"\nMERGANSER_METRICS_KEY='a # b = c 0123456'\n"
        "MERGANSER_QUEUE_LIFETIME=3 days\nMERGANSER_NEXT_HOP=\n",
    )
    monkeypatch.setenv("MERGANSER_HOSTNAME", "mx2.example.org")
    monkeypatch.setenv("MERGANSER_QUEUE_LIFETIME", "")  # as if it were not set
    settings = read_settings()
    assert (settings.hostname, settings.log_level) == ("mx2.example.org", "WARNING")
    assert settings.queue_lifetime.days == 3
    assert settings.metrics_key is not None
    assert settings.metrics_key.get_secret_value() == "a # b = c 0123456"


def test_error_names_the_line_and_no_value(config_file: Path) -> None:
    cases: list[tuple[bytes, str]] = [
        (b"MERGANSER_HOSTNAM=x", "line 1: MERGANSER_HOSTNAM is not a setting. Did you mean"),
        (b"\n\nHOSTNAME=x", "line 3: HOSTNAME is not a setting."),
        (b"MERGANSER_LOG_LEVEL=LOUD", "line 1: MERGANSER_LOG_LEVEL is wrong"),
        (b"MERGANSER_METRICS_KEY=short", "line 1: MERGANSER_METRICS_KEY is wrong"),
        (b"# a\nMERGANSER_HOSTNAME", "line 2: write VARIABLE=value."),
        (b"export MERGANSER_HOSTNAME=x", "line 1: write VARIABLE=value."),
        (b"MERGANSER_HOSTNAME='x", "line 1: the closing quote is missing."),
        (b"MERGANSER_HOSTNAME=a\nMERGANSER_HOSTNAME=b", "line 2: MERGANSER_HOSTNAME is also set"),
        (b"MERGANSER_HOSTNAME=\xff\xfe", "line 1: the text is not UTF-8."),
        (b"MERGANSER_HOSTNAME=a\0b", "line 1: the value has a control character."),
        (b"MERGANSER_CONFIG=/etc/other", "line 1: MERGANSER_CONFIG must be a variable"),
    ]
    for case in each_case(cases):
        with case as (text, expected):
            config_file.write_bytes(text)
            with pytest.raises(CommandError) as error:
                read_settings()
            assert f"{config_file}, {expected}" in error.value.message
            assert "short" not in error.value.message
            assert "LOUD" not in error.value.message


def test_file_that_cannot_be_read_is_refused(config_file: Path) -> None:
    with pytest.raises(CommandError, match=r"Cannot read .+: No such file"):
        read_settings()
    with config_file.open("wb") as file:
        file.truncate(1 << 30)  # sparse
    with pytest.raises(CommandError, match="is larger than 256 KiB"):
        read_settings()
    config_file.unlink()
    os.mkfifo(config_file)
    with pytest.raises(CommandError, match="is not a regular file"):
        read_settings()
    config_file.unlink()
    config_file.mkdir()
    with pytest.raises(CommandError, match="Is a directory"):
        read_settings()
    config_file.rmdir()
    config_file.symlink_to("/proc/self/mem")
    with pytest.raises(CommandError):
        read_settings()


def test_unreadable_file_is_refused(config_file: Path) -> None:
    write_lines(config_file, "MERGANSER_HOSTNAME=x")
    config_file.chmod(0)
    if os.geteuid() == 0:  # root can read it
        assert read_settings().hostname == "x"
        return
    with pytest.raises(CommandError, match=r"Cannot read .*: Permission denied"):
        read_settings()


async def test_reload_applies_what_needs_no_restart_and_stored_settings_precede(
    config_file: Path, environment: Environment, root: GraphQLClient
) -> None:
    write_lines(config_file, "")
    reloader = ConfigReloader(read_settings(), environment, 1)
    write_lines(
        config_file,
        "MERGANSER_QUEUE_LIFETIME=3 days\nMERGANSER_HTTP_LISTEN=127.0.0.1:1\n"
        "MERGANSER_BULK_MAX_ITEMS=7\nMERGANSER_RSPAMD_URL=http://127.0.0.1:9\n",
    )
    checked = await reloader.check()
    assert environment.options.bulk_max_items != 7
    reloaded = await reloader.reload()
    assert reloaded == checked
    assert set(reloaded.changed_keys) == {
        "MERGANSER_BULK_MAX_ITEMS", "MERGANSER_HTTP_LISTEN", "MERGANSER_QUEUE_LIFETIME",
        "MERGANSER_RSPAMD_URL",
    }  # fmt: skip
    assert reloaded.restart_keys == ["MERGANSER_HTTP_LISTEN"]
    assert environment.options.bulk_max_items == 7
    assert environment.options.rspamd_url == "http://127.0.0.1:9"
    set_document = """mutation { settingSet(input: {key: "bulk.maxItems", value: 11}) {
        errors { code } } }"""
    assert (await root(set_document))["settingSet"]["errors"] == []
    write_lines(config_file, "MERGANSER_BULK_MAX_ITEMS=8\n")
    reloaded = await reloader.reload()
    assert "MERGANSER_BULK_MAX_ITEMS" in reloaded.changed_keys
    assert environment.options.bulk_max_items == 11
    assert environment.options.rspamd_url == ""


async def test_invalid_file_changes_nothing(config_file: Path, environment: Environment) -> None:
    write_lines(config_file, "")
    reloader = ConfigReloader(read_settings(), environment, 1)
    before = environment.options
    write_lines(config_file, "MERGANSER_BULK_MAX_ITEMS=7\nMERGANSER_BULK_MAX_ITEM=7\n")
    for read_again in (reloader.check, reloader.reload):
        with pytest.raises(InvalidConfig, match="line 2: MERGANSER_BULK_MAX_ITEM is not a setting"):
            await read_again()
    assert environment.options is before


async def test_reload_applies_limits_and_files_that_are_read_at_use(
    config_file: Path, environment: Environment, tmp_path: Path
) -> None:
    write_lines(config_file, "")
    reloader = ConfigReloader(read_settings(), environment, 1)
    words = tmp_path / "breached"
    words.write_text("a long passphrase\n")
    write_lines(
        config_file,
        "MERGANSER_APP_PASSWORDS_MAX_PER_USER=3\nMERGANSER_OAUTH_ACCESS_TOKEN_TTL=5 minutes\n"
        f"MERGANSER_BREACHED_PASSWORDS_FILE={words}\nMERGANSER_WELCOME_FOLDER={tmp_path}\n"
        "MERGANSER_SMTP_CONNECTIONS=7\nMERGANSER_HOSTNAME=mx9.example.org\n",
    )
    assert not await is_breached(environment, "a long passphrase")
    reloaded = await reloader.reload()
    assert reloaded.restart_keys == ["MERGANSER_HOSTNAME", "MERGANSER_SMTP_CONNECTIONS"]
    assert environment.options.app_passwords_max_per_user == 3
    assert environment.options.oauth_access_token_ttl == timedelta(minutes=5)
    assert environment.options.welcome_folder == tmp_path
    assert environment.options.hostname != "mx9.example.org"
    assert await is_breached(environment, "a long passphrase")


async def load_peer_certificate(port: int) -> bytes | None:
    """Connect by TLS, and return the certificate of the server."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return certificate


async def test_reload_applies_other_certificate_files_and_drops_no_connection(
    config_file: Path, environment: Environment, tmp_path: Path
) -> None:
    port, files = free_port(), [tmp_path / "one.pem", tmp_path / "two.pem"]
    authority = CertificateAuthority(tmp_path)
    for file in files:
        authority.issue_certificate().rename(file)
    expected = [ssl.PEM_cert_to_DER_cert(_certificate_pem(file)) for file in files]
    lines = (
        f"MERGANSER_DATA={tmp_path}\nMERGANSER_SUBMISSION_TLS_LISTEN=127.0.0.1:{port}\n"
        "MERGANSER_TLS_CERT="
    )
    write_lines(config_file, f"{lines}{files[0]}\n")
    settings = read_settings()
    reloader = ConfigReloader(settings, environment, 1)
    (tmp_path / "spool").mkdir()
    async with AsyncExitStack() as stack:
        definitions = await load_certificates_and_define_listeners(
            settings, environment, WHOLE_SERVER, stack
        )
        await stack.enter_async_context(running_listeners(environment, definitions))
        session = await connect_with_implicit_tls(port, authority.client_context())
        assert await load_peer_certificate(port) == expected[0]
        write_lines(config_file, f"{lines}{files[1]}\n")
        reloaded = await reloader.reload()
        assert (list(reloaded.changed_keys), reloaded.restart_keys) == (["MERGANSER_TLS_CERT"], [])
        assert await load_peer_certificate(port) == expected[1]
        assert environment.options.tls_cert == files[1]
        for wrong in ("no.pem", "settings"):
            write_lines(config_file, f"{lines}{tmp_path / wrong}\n")
            with pytest.raises(InvalidConfig, match="MERGANSER_TLS_CERT cannot be used"):
                await reloader.reload()
        write_lines(config_file, lines)
        with pytest.raises(InvalidConfig, match="requires a certificate"):
            await reloader.reload()
        assert await load_peer_certificate(port) == expected[1]
        assert (await session.run_command("NOOP")).startswith("250 ")
        await session.close()


def _certificate_pem(file: Path) -> str:
    text = file.read_text()
    return text[text.index("-----BEGIN CERTIFICATE") :]


def test_replaced_process_uses_no_setting_that_needs_a_restart(config_file: Path) -> None:
    write_lines(config_file, "")
    current = read_settings()
    write_lines(config_file, "MERGANSER_BULK_MAX_ITEMS=7\nMERGANSER_HTTP_LISTEN=127.0.0.1:1\n")
    merged = with_reloadable_values(current, read_settings())
    assert (merged.bulk_max_items, merged.http_listen) == (7, current.http_listen)
    assert set(Settings.model_fields) >= RELOADABLE_FIELDS


async def test_reload_of_demo_server_keeps_it_offline(
    config_file: Path, environment: Environment
) -> None:
    write_lines(config_file, "MERGANSER_CORS_ORIGINS=https://a.example\n")
    settings = demo_settings(read_settings())
    environment.use_initial_options(settings.options())
    write_lines(
        config_file, "MERGANSER_CORS_ORIGINS=https://a.example\nMERGANSER_BULK_MAX_ITEMS=7\n"
    )
    reloaded = await ConfigReloader(settings, environment, 1).reload()
    assert (list(reloaded.changed_keys), reloaded.restart_keys) == (
        ["MERGANSER_BULK_MAX_ITEMS"],
        [],
    )
    assert environment.options.offline_sink == settings.data / "outgoing-mail"
    assert environment.options.dns_resolver == NO_NAME_SERVER
    assert settings.cors_origins == (
        "https://a.example",
        "http://localhost:*",
        "http://127.0.0.1:*",
    )
