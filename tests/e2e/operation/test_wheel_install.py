"""Tests of the wheel, installed beside another package that has modules with the same names."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

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
        env: Mapping[str, str] = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), **settings}
        process = subprocess.run(
            [str(self.venv / "bin" / arguments[0]), *arguments[1:]],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout


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
