"""Tests of the wheel, installed beside another package that has modules with the same names."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bench.servers.ports import HOST, free_port
from tests.support.time_limits import HANG_SECONDS

ROOT = Path(__file__).parents[3]
TOP_LEVEL_NAMES = ("graph", "resolvers", "mail", "models", "migrations")
METADATA = "Metadata-Version: 2.1\nName: stranger\nVersion: 1\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass(frozen=True)
class WheelInstallation:
    """A virtual environment and an empty folder where its programs run."""

    venv: Path
    wheel: Path
    folder: Path

    def run(self, *arguments: str, **settings: str) -> str:
        """Run a program that must succeed and return its output."""
        process = subprocess.run(
            [str(self.venv / "bin" / arguments[0]), *arguments[1:]],
            cwd=self.folder,
            env=self._env(settings),
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    def _env(self, settings: Mapping[str, str]) -> Mapping[str, str]:
        return {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), **settings}

    @contextmanager
    def run_demo_server(self, **settings: str) -> Generator[str]:
        """Run `merganser serve --demo` and yield its banner.

        SIGTERM ends it with exit code 0 at the end of the block.
        """
        out, log = self.folder / "banner", self.folder / "log"
        command = [str(self.venv / "bin/merganser"), "serve", "--demo", "--demo-count", "20"]
        with out.open("wb") as out_file, log.open("wb") as log_file:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self._env(settings), stdout=out_file, stderr=log_file
            )
        try:
            deadline = time.monotonic() + HANG_SECONDS
            while "send-test" not in (banner := out.read_text()) or not banner.endswith("\n\n"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, banner
                time.sleep(0.05)
            yield banner
            process.terminate()
            assert process.wait(HANG_SECONDS) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


def build_other_wheel(folder: Path) -> Path:
    """Build a wheel with modules that have the names of our packages."""
    path = folder / "stranger-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name in TOP_LEVEL_NAMES:
            wheel.writestr(f"{name}/__init__.py", f"OWNER = 'a stranger, {name}'\n")
        wheel.writestr("stranger-1.dist-info/METADATA", METADATA)
        wheel.writestr("stranger-1.dist-info/WHEEL", WHEEL)
        wheel.writestr("stranger-1.dist-info/RECORD", "")
    return path


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> WheelInstallation:
    """Both wheels, built and installed. This environment provides all other packages.

    A line in a .pth file adds one folder to the path. The installation of the checkout in this
    environment is not visible there.
    """
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    env = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
    build_command = [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation"]
    subprocess.run([*build_command, "-w", str(folder)], env=env, check=True)
    (wheel,) = folder.glob("merganser-*.whl")
    venv_folder = folder / "venv"
    venv.create(venv_folder, with_pip=False, symlinks=True)
    wheels = [str(wheel), str(build_other_wheel(folder))]
    install_command = [
        *pip,
        "--python",
        str(venv_folder / "bin" / "python"),
        "install",
        "--no-deps",
        *wheels,
    ]
    subprocess.run(install_command, env=env, check=True)
    (site_packages,) = venv_folder.glob("lib/python*/site-packages")
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    empty_folder = folder / "empty"
    empty_folder.mkdir()
    return WheelInstallation(venv_folder, wheel, empty_folder)


@pytest.fixture
def clean_installation(installation: WheelInstallation, tmp_path: Path) -> WheelInstallation:
    """The wheel with two extras, in an environment that has only what the wheel requires.

    The versions are those of requirements.lock. uv uses the packages in its cache.
    """
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python"]
    constraint = ["--constraint", str(ROOT / "requirements.lock")]
    wheel = f"{installation.wheel}[postgres,telemetry]"
    subprocess.run([*uv, str(tmp_path / "venv/bin/python"), *constraint, wheel], check=True)
    empty_folder = tmp_path / "empty"
    empty_folder.mkdir()
    return WheelInstallation(tmp_path / "venv", installation.wheel, empty_folder)


def test_wheel_with_extras_runs_demo_server_in_clean_environment(
    clean_installation: WheelInstallation,
) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert clean_installation.run("merganser", "--version") == f"merganser {version}\n"
    clean_installation.run("python", "-c", "import asyncpg, opentelemetry.sdk")
    import_folders = clean_installation.run("python", "-c", "import sys; print(sys.path)")
    assert str(ROOT) not in import_folders
    http, lmtp = f"{HOST}:{free_port()}", f"{HOST}:{free_port()}"
    settings = {"MERGANSER_HTTP_LISTEN": http, "MERGANSER_LMTP_LISTEN": lmtp}
    with clean_installation.run_demo_server(**settings) as banner:
        reply = clean_installation.run("merganser", "send-test", "--subject", "Wheel", **settings)
        assert "250 2.0.0 OK: queued" in reply
        key = re.findall(r"API key +(\S+)", banner)[0]
        query = (
            "{ viewer { user { username"
            " mailbox(by: {specialUse: INBOX}) { messages(first: 1) { nodes { subject } } } } } }"
        )
        response = httpx.post(
            f"http://{http}/graphql",
            json={"query": query},
            headers={"Authorization": f"Bearer {key}"},
            timeout=HANG_SECONDS,
        )
        assert response.json()["data"]["viewer"]["user"] == {
            "username": "demo",
            "mailbox": {"messages": {"nodes": [{"subject": "Wheel"}]}},
        }
        page = httpx.get(f"http://{http}/docs/operating/install", timeout=HANG_SECONDS)
        assert "Install Merganser" in page.text
    assert (clean_installation.folder / "var/merganser.db").exists()


def test_wheel_has_only_merganser_at_top_level(installation: WheelInstallation) -> None:
    names = zipfile.ZipFile(installation.wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"merganser"}
    for required_file in (
        "packages/graph/static/graphiql.js.gz",
        "migrations/env.py",
        "docs/README.md",
        "deploy/merganser.service",
        "demo/text_library.py",
    ):
        assert f"merganser/{required_file}" in names
    deploy_files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    required_files = {f"merganser/{path.relative_to(ROOT)}" for path in deploy_files}
    assert required_files - {"merganser/deploy/.env"} <= set(names)
    assert not [
        name for name in names if re.search(r"__pycache__|(?<!send-)\btests?\b|\btest_", name)
    ]


def test_commands_of_wheel_run_in_empty_folder(installation: WheelInstallation) -> None:
    assert "serve" in installation.run("merganser", "--help")
    assert installation.run("merganser", "schema") == (ROOT / "schema.graphql").read_text()
    output = installation.run("merganser", "init", MERGANSER_DATA=str(installation.folder / "var"))
    assert output.startswith("The store is ready")
    assert (installation.folder / "var" / "merganser.db").stat().st_size > 0


def test_modules_of_other_package_are_used_unless_merganser_is_imported(
    installation: WheelInstallation,
) -> None:
    code_without_merganser = "import models; print(models.OWNER)"
    assert installation.run("python", "-c", code_without_merganser) == "a stranger, models\n"
    code_with_merganser = "import merganser, models.errors; print(models.__file__)"
    assert "merganser/packages/models" in installation.run("python", "-c", code_with_merganser)


def test_image_without_source_code_has_all_that_commands_need(
    installation: WheelInstallation, tmp_path: Path
) -> None:
    containerfile = (ROOT / "deploy" / "Containerfile").read_text().replace("\\\n", " ")
    (delete_sources,) = re.findall(r"^RUN (cd .*-m compileall.*)$", containerfile, re.MULTILINE)
    installed = tmp_path / "venv"
    shutil.copytree(installation.venv, installed, symlinks=True)
    subprocess.run(
        ["/bin/sh", "-c", delete_sources.replace("/opt/merganser", str(installed))],
        env={"PATH": f"{installed}/bin:/usr/bin:/bin"},
        check=True,
    )
    sources = {path.parent.name for path in installed.rglob("*.py")}
    assert sources == {"migrations", "versions"}
    compiled = WheelInstallation(installed, installation.wheel, tmp_path)
    run_merganser = ("python", "-m", "merganser")
    assert compiled.run(*run_merganser, "schema") == (ROOT / "schema.graphql").read_text()
    output = compiled.run(*run_merganser, "init", MERGANSER_DATA=str(tmp_path / "var"))
    assert output.startswith("The store is ready")
