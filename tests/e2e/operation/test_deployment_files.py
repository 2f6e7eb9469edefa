"""The container, compose and systemd files in `deploy/` fit the server and its settings."""

import ipaddress
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from merganser.settings.settings import PREFIX, Settings
from tests.support.servers.merganser_server import ROOT
from tests.support.servers.program_process import program_path, require_program

DEPLOY = ROOT / "deploy"
CONTAINERFILE = DEPLOY / "Containerfile"
UNIT = DEPLOY / "merganser.service"
PROFILES = {"single", "full"}
MAX_EXPOSURE = 2.0  # of `systemd-analyze security`


def compose() -> Mapping[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def containerfile_instructions() -> list[str]:
    text = re.sub(r"^#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE)
    text = text.replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def copied_sources() -> set[str]:
    return {
        word
        for line in containerfile_instructions()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }


def unit_values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def setting_variables() -> set[str]:
    return {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("path", sorted(path for path in DEPLOY.rglob("*") if path.is_file()))
def test_every_variable_is_a_setting(path: Path) -> None:
    variables = set(re.findall(rf"\b{PREFIX}[A-Z][A-Z0-9_]*", path.read_text()))
    assert variables <= setting_variables()


def test_containerfile_copies_all_that_the_wheel_contains() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["only-include"], *wheel["force-include"], "pyproject.toml"}
    needed |= {project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | {"requirements.lock"} == copied_sources()
    allowed = {
        line.removeprefix("!")
        for line in (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert allowed == copied_sources()
    assert all((ROOT / source).exists() for source in copied_sources())


def test_base_image_is_an_argument_with_an_allowed_python() -> None:
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert "/" not in image
    version = tuple(map(int, re.findall(r"python:(\d+)\.(\d+)-slim", image)[0]))
    requirement = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert version >= tuple(map(int, requirement.removeprefix(">=").split(".")))
    stages = [line for line in containerfile_instructions() if line.startswith("FROM ")]
    assert stages == [
        "FROM ${PYTHON_IMAGE} AS build",
        "FROM ${PYTHON_IMAGE} AS base",
        "FROM scratch",
    ]


def test_last_stage_installs_nothing_and_runs_without_root() -> None:
    instructions = containerfile_instructions()
    last_stage = instructions[instructions.index("FROM scratch") :]
    assert not [line for line in last_stage if re.search(r"\b(apt|apt-get|pip|gcc)\b", line)]
    assert "USER merganser" in last_stage
    assert "STOPSIGNAL SIGTERM" in last_stage
    assert [line for line in last_stage if line.startswith("VOLUME")] == ["VOLUME /data"]
    (health_check,) = (line for line in last_stage if line.startswith("HEALTHCHECK"))
    command = json.loads(health_check.partition(" CMD ")[2])
    compile(command[-1], "the health check", "exec")
    assert "/health/ready" in command[-1]


def test_extras_of_the_image_exist() -> None:
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", CONTAINERFILE.read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*extras.split(","), "dev"} == set(project["optional-dependencies"])


def test_each_profile_has_one_server() -> None:
    services = compose()["services"]
    for name, service in services.items():
        assert set(service["profiles"]) <= PROFILES, name
        for dependency in service.get("depends_on", ()):
            assert set(service["profiles"]) <= set(services[dependency]["profiles"])
    for profile in PROFILES:
        servers = [
            name
            for name, service in services.items()
            if profile in service["profiles"] and service["image"] == "merganser"
        ]
        assert servers == [f"merganser-{profile}"]
        server = services[servers[0]]
        assert server["read_only"]
        assert server["cap_drop"] == ["ALL"]
    assert {"postgres", "seaweedfs", "nats", "rspamd", "caddy"} <= set(services)


def test_only_servers_and_proxy_publish_ports() -> None:
    services = compose()["services"]
    publishing = {name for name, service in services.items() if service.get("ports")}
    assert publishing == {"merganser-single", "merganser-full", "caddy"}


def test_servers_trust_only_their_proxy() -> None:
    file = compose()
    services = file["services"]
    (pool,) = file["networks"]["default"]["ipam"]["config"]
    proxies = {
        "single": pool["gateway"],  # a proxy on the host
        "full": services["caddy"]["networks"]["default"]["ipv4_address"],
    }
    for profile, address in proxies.items():
        assert ipaddress.ip_address(address) in ipaddress.ip_network(pool["subnet"])
        environment = services[f"merganser-{profile}"]["environment"]
        assert environment["MERGANSER_TRUSTED_PROXIES"] == address


def test_ports_are_published_on_ipv4_only() -> None:
    """Without IPv6 in the network, its clients would have the address of the gateway."""
    ports = [
        port for service in compose()["services"].values() for port in service.get("ports", ())
    ]
    assert all(re.match(r"(0\.0\.0\.0|127\.0\.0\.1):\d+:", port) for port in ports)


def test_volumes_and_files_of_compose_exist() -> None:
    file = compose()
    for service in file["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_file()
            else:
                assert source in file["volumes"]
        for config in service.get("configs", ()):
            assert config["source"] in file["configs"]
    json.loads(file["configs"]["s3"]["content"])


def test_variables_of_compose_are_in_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+):-", (DEPLOY / "compose.yaml").read_text()))
    example = (DEPLOY / "compose.env.example").read_text()
    assert used == set(re.findall(r"^#?(\w+)=", example, re.MULTILINE))


def test_unit_and_admin_command_use_the_same_folders() -> None:
    admin = (DEPLOY / "merganser-admin").read_text()
    for value in [*unit_values("Environment"), *unit_values("LoadCredential")]:
        assert value in admin, value
    assert os.access(DEPLOY / "merganser-admin", os.X_OK)
    subprocess.run(["/bin/sh", "-n", str(DEPLOY / "merganser-admin")], check=True)


def test_unit_passes_secrets_to_the_main_process(tmp_path: Path) -> None:
    """The command of the unit replaces the shell, and the program has the variables."""
    (command,) = unit_values("ExecStart")
    program = tmp_path / "merganser"
    program.write_text('#!/bin/sh\necho "$$ $1 $MERGANSER_DATABASE_URL"\n')
    program.chmod(0o700)
    url = "postgresql://merganser:pa$word%21@db.example.org/merganser"
    (tmp_path / "secrets").write_text(f"MERGANSER_DATABASE_URL='{url}'\n")
    script = re.findall(r"^/bin/sh -c '(.*)'$", command)[0].replace("$$", "$")
    script = script.replace("/opt/merganser/bin/merganser", str(program))
    process = subprocess.Popen(
        ["/bin/sh", "-c", script],
        env={"PATH": "/usr/bin:/bin", "CREDENTIALS_DIRECTORY": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=60)
    assert output.split() == [str(process.pid), "serve", url]


def test_admin_command_passes_arguments_unchanged(tmp_path: Path) -> None:
    """systemd replaces `$$` by `$` in arguments, and `${NAME}` by the value of a variable."""
    program = tmp_path / "systemd-run"
    program.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    program.chmod(0o700)
    arguments = ["user", "add", "", "a b", "$HOME", "${HOME}$$", "it's"]
    result = subprocess.run(
        [str(DEPLOY / "merganser-admin"), *arguments],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    passed = result.stdout.split("\0")[:-1]
    assert passed[-len(arguments) :] == [argument.replace("$", "$$") for argument in arguments]


def test_unit_names_no_setting_twice() -> None:
    names = re.findall(r"^(\w+)=", UNIT.read_text(), re.MULTILINE)
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated <= {"After", "Environment", "SystemCallFilter"}


def test_exposure_of_the_unit_is_low() -> None:
    require_program("systemd-analyze")
    command = [program_path("systemd-analyze"), "security", "--offline=true", "--no-pager"]
    result = subprocess.run(
        [*command, f"--threshold={MAX_EXPOSURE * 10:.0f}", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
