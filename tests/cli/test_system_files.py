"""Tests of the files that `merganser init --system` creates for the systemd service."""

import grp
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from merganser.commands.server import system_files
from merganser.errors import CommandError
from merganser.settings.config_file import read_config_file
from merganser.settings.settings import PREFIX, Settings, read_settings
from merganser.settings.units import format_size_in_whole_units, parse_size_if_text
from tests.support.clients.command_line import CommandLine
from tests.support.servers.merganser_server import ROOT

HIDDEN = {
    f"{PREFIX}{name.upper()}"
    for name, field in Settings.model_fields.items()
    if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("hidden")
}
SET_BY_UNIT = {"MERGANSER_DATA", "MERGANSER_CONFIG"}
SECRETS = {
    "MERGANSER_BOOTSTRAP_KEY", "MERGANSER_DATABASE_URL", "MERGANSER_METRICS_KEY",
    "MERGANSER_NEXT_HOP", "MERGANSER_RSPAMD_PASSWORD", "MERGANSER_SIGNING_SECRET",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "merganser"
    created = system_files.create_missing_system_files(path, os.getgid())
    assert created == [path / "merganser.toml", path / "secrets"]
    return path


def commented_variables(path: Path) -> set[str]:
    """The variables of the commented lines: `KEY = value` of TOML, or `VARIABLE=value`."""
    keys = re.findall(r"^#([a-z0-9_]+) = ", path.read_text(), re.MULTILINE)
    names = re.findall(r"^#(\w+)=", path.read_text(), re.MULTILINE)
    variables = [*(f"{PREFIX}{key.upper()}" for key in keys), *names]
    assert len(variables) == len(set(variables))
    return set(variables)


def uncomment_all_keys(path: Path) -> None:
    path.write_text(re.sub(r"^#(?=[a-z0-9_]+ = )", "", path.read_text(), flags=re.MULTILINE))


def test_files_have_every_setting_once(folder: Path) -> None:
    plain = commented_variables(folder / "merganser.toml")
    secret = commented_variables(folder / "secrets")
    assert secret >= SECRETS
    assert not plain & secret
    own = {name for name in plain | secret if name.startswith(PREFIX)}
    settings = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert own == settings - HIDDEN - SET_BY_UNIT
    assert secret - own == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_each_setting_follows_its_description(folder: Path) -> None:
    for path in folder.iterdir():
        lines = path.read_text().splitlines()
        settings = [number for number, line in enumerate(lines) if re.match(r"#\w+ ?=", line)]
        assert settings
        undescribed = [
            lines[number]
            for number in settings
            if not lines[number - 1].startswith("# ") and number - 1 not in settings
        ]
        assert not undescribed, path


def test_settings_file_sets_nothing_until_a_line_is_uncommented(folder: Path) -> None:
    path = folder / "merganser.toml"
    assert read_config_file(path) == {}
    text = path.read_text()
    assert '\n#hostname = "localhost"\n' in text
    path.write_text(text.replace('\n#hostname = "localhost"\n', '\nhostname = "mx.example.org"\n'))
    lines = read_config_file(path)
    assert {name: line.value for name, line in lines.items()} == {
        "MERGANSER_HOSTNAME": "mx.example.org"
    }


def test_settings_file_shows_the_defaults(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    defaults = read_settings()
    path = folder / "merganser.toml"
    uncomment_all_keys(path)
    assert len(read_config_file(path)) > 100
    monkeypatch.setenv("MERGANSER_CONFIG", str(path))
    assert read_settings().model_dump() == {**defaults.model_dump(), "config": path}


def test_file_of_secrets_is_read_by_a_shell(folder: Path) -> None:
    path = folder / "secrets"
    value = "postgresql://merganser:pa$word@db.example.org/merganser"
    path.write_text(
        path.read_text().replace("#MERGANSER_DATABASE_URL=''", f"MERGANSER_DATABASE_URL='{value}'")
    )
    script = f'set -eua; . "{path}"; printf %s "$MERGANSER_DATABASE_URL"'
    result = subprocess.run(
        ["/bin/sh", "-c", script], env={}, capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == (value, "")


def test_only_the_owner_reads_the_secrets(folder: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"merganser": 0o750, "merganser.toml": 0o640, "secrets": 0o600}
    assert (folder / "merganser.toml").stat().st_gid == os.getgid()


def test_existing_files_are_kept(folder: Path) -> None:
    (folder / "merganser.toml").write_text('hostname = "mx.example.org"\n')
    (folder / "secrets").unlink()
    created = system_files.create_missing_system_files(folder, os.getgid())
    assert created == [folder / "secrets"]
    assert (folder / "merganser.toml").read_text() == 'hostname = "mx.example.org"\n'


def test_folder_that_cannot_be_created_is_named() -> None:
    with pytest.raises(CommandError, match=r"Cannot create files in /proc/none: .*as root"):
        system_files.create_missing_system_files(Path("/proc/none"), os.getgid())


def test_command_prints_what_remains_and_its_commands_work(
    shell_without_store: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell, folder = shell_without_store, tmp_path / "etc"
    monkeypatch.setattr(system_files, "SYSTEM_FOLDER", folder)
    monkeypatch.setattr(system_files, "SERVICE_GROUP", grp.getgrgid(os.getgid()).gr_name)
    settings, secrets = folder / "merganser.toml", folder / "secrets"
    first, second = shell("init", "--system"), shell("init", "--system")
    assert (first.code, second.code) == (0, 0)
    created, _, remaining = first.out.partition("What remains to be done:\n")
    assert created == f"Created {settings}.\nCreated {secrets}.\n"
    assert second.out.startswith(f"The files in {folder} exist, and were not changed.\n")
    assert second.out.endswith(remaining)
    for path in (settings, secrets):
        assert f" into {path}" in remaining
    assert not shell.data.exists()

    shell.set_settings(config=str(settings))
    commands = re.findall(r"^\d\. Run: merganser-admin (.*)$", remaining, re.MULTILINE)
    results = {command.split()[0]: shell(*command.split()) for command in commands}
    assert list(results) == ["init", "api-key", "doctor"]
    assert "The store is ready" in results["init"].out
    assert "mgk_" in results["api-key"].out
    assert "database" in results["doctor"].out


def test_command_names_the_missing_group(
    shell_without_store: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_files, "SYSTEM_FOLDER", tmp_path / "etc")
    monkeypatch.setattr(system_files, "SERVICE_GROUP", "no-such-group")
    result = shell_without_store("init", "--system")
    assert result.code == 1
    assert "The group no-such-group does not exist: run `useradd --system" in result.err
    assert not (tmp_path / "etc").exists()


def test_files_are_those_of_the_unit() -> None:
    unit = (ROOT / "deploy/merganser.service").read_text()
    assert f"MERGANSER_CONFIG={system_files.SYSTEM_FOLDER}/merganser.toml" in unit
    assert f"LoadCredential=secrets:{system_files.SYSTEM_FOLDER}/secrets" in unit
    assert f"Group={system_files.SERVICE_GROUP}" in unit


@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 10, 1500, 5 * 10**9, 1 << 30, 3 << 40])
def test_sizes_are_read_as_they_are_shown(size: int) -> None:
    assert parse_size_if_text(format_size_in_whole_units(size)) == size
