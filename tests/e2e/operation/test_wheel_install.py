"""The wheel, installed beside a stranger who has a `models` of their own."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FLOORS = ("graph", "resolvers", "mail", "models", "migrations")
METADATA = "Metadata-Version: 2.1\nName: stranger\nVersion: 1\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass(frozen=True)
class Place:
    """A virtual environment, and an empty folder to run its programs in."""

    venv: Path
    wheel: Path
    folder: Path

    def run(self, *words: str, **settings: str) -> str:
        """What a program says; it must end well."""
        env: Mapping[str, str] = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), **settings}
        done = subprocess.run(
            [str(self.venv / "bin" / words[0]), *words[1:]],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def stranger(folder: Path) -> Path:
    """The wheel of a package whose modules are called like ours."""
    path = folder / "stranger-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name in FLOORS:
            wheel.writestr(f"{name}/__init__.py", f"OWNER = 'a stranger, {name}'\n")
        wheel.writestr("stranger-1.dist-info/METADATA", METADATA)
        wheel.writestr("stranger-1.dist-info/WHEEL", WHEEL)
        wheel.writestr("stranger-1.dist-info/RECORD", "")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Ours and the stranger's, built and installed. All else is lent by this environment.

    A line in a .pth file is a folder on the path, and no more: that we are installed from the
    checkout in this environment does not come along.
    """
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    env = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "-w", str(folder)], env=env, check=True)
    (wheel,) = folder.glob("merganser-*.whl")
    home = folder / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    given = [str(wheel), str(stranger(folder))]
    install = [*pip, "--python", str(home / "bin" / "python"), "install", "--no-deps", *given]
    subprocess.run(install, env=env, check=True)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    empty = folder / "empty"
    empty.mkdir()
    return Place(home, wheel, empty)


def test_the_wheel_puts_nothing_of_ours_at_the_top_but_merganser(place: Place) -> None:
    names = zipfile.ZipFile(place.wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"merganser"}
    for needed in (
        "packages/graph/static/graphiql.js.gz",
        "migrations/env.py",
        "demo/text_library.py",
    ):
        assert f"merganser/{needed}" in names
    assert not [name for name in names if re.search(r"__pycache__|\btests?\b|\btest_", name)]


def test_its_commands_run_in_an_empty_folder(place: Place) -> None:
    assert "serve" in place.run("merganser", "--help")
    assert place.run("merganser", "schema") == (ROOT / "schema.graphql").read_text()
    said = place.run("merganser", "init", MERGANSER_DATA=str(place.folder / "var"))
    assert said.startswith("The store is ready")
    assert (place.folder / "var" / "merganser.db").stat().st_size > 0


def test_a_stranger_keeps_their_names_as_long_as_we_are_not_asked_for(place: Place) -> None:
    mine = "import models; print(models.OWNER)"
    assert place.run("python", "-c", mine) == "a stranger, models\n"
    ours = "import merganser, models.errors; print(models.__file__)"
    assert "merganser/packages/models" in place.run("python", "-c", ours)
