"""The programs that build and run an image: podman, docker, or buildah with namespaces.

A container has a read-only root file system, a temporary /tmp, a volume in /data, no network
but loopback, and no capability.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from tests.support.container_image.debian_base import create_debian_base
from tests.support.container_image.run_command import ImageError, is_command_successful, run_command

ROOT = Path(__file__).parents[3]
CONTAINERFILE = ROOT / "deploy/Containerfile"
NAME = f"merganser-check-{os.getpid()}"  # of the image, the container and the volume
RUN_IN_ROOT = """
root=$1 data=$2
mount --bind "$root" "$root"
mount --options remount,bind,ro "$root"
mount --bind "$data" "$root/data"
mount --types tmpfs tmpfs "$root/tmp"
mount --types proc proc "$root/proc"
mount --rbind /dev "$root/dev"
ip link set lo up
shift 2
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class ContainerEngine:
    """podman or docker, which have the same options."""

    program: str
    base_image: str

    def build(self) -> None:
        # The health check needs Docker's format. No layers: they would be left as images.
        form = ["--format", "docker", "--layers=false"] if self.program == "podman" else []
        options = ["--build-arg", f"PYTHON_IMAGE={self.base_image}", "--tag", NAME]
        command = ["build", *form, *options, "--file", str(CONTAINERFILE), str(ROOT)]
        run_command(self.program, *command)

    @cached_property
    def _image(self) -> dict[str, Any]:
        return dict(json.loads(run_command(self.program, "image", "inspect", NAME))[0])

    def size(self) -> float:
        """The size of the image in MB."""
        return float(self._image["Size"] / 1e6)

    def health_check(self) -> list[str]:
        properties = self._image if self.program == "podman" else self._image["Config"]
        return list(properties["Healthcheck"]["Test"][1:])

    def command(self, *arguments: str, entrypoint: str = "") -> list[str]:
        """The command that runs the image, by default with its own entry point and command."""
        options = ["--rm", "--name", NAME, "--volume", f"{NAME}:/data", "--network", "none"]
        options += ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "all"]  # noqa: S108
        options += ["--security-opt", "no-new-privileges"]
        options += ["--entrypoint", entrypoint] if entrypoint else []
        return [self.program, "run", *options, NAME, *arguments]

    def command_beside(self, container: subprocess.Popen[str], *arguments: str) -> list[str]:
        """The command that runs a program in the running container."""
        return [self.program, "exec", NAME, *arguments]

    def remove(self) -> None:
        for kind in (["container", "rm"], ["volume", "rm"], ["image", "rm"]):
            is_command_successful(self.program, *kind, "--force", NAME)


@dataclass(frozen=True)
class BuildahEngine:
    """buildah and Linux namespaces, with a base image of Debian packages. It needs root.

    All files are in the scratch folder.
    """

    program: ClassVar[str] = "buildah"
    scratch: Path

    def _buildah(self, *arguments: str) -> str:
        storage = ["--root", str(self.scratch / "storage"), "--runroot", str(self.scratch / "run")]
        # In a mount namespace, so that no mount is left
        command = ["unshare", "--mount", "buildah", "--storage-driver", "vfs", *storage]
        return run_command(*command, *arguments).strip()

    def build(self) -> None:
        root, base = self.scratch / "base", f"localhost/{NAME}-base"
        create_debian_base(root)
        container = self._buildah("from", "scratch")
        self._buildah("add", "--quiet", container, str(root), "/")
        self._buildah("commit", "--quiet", "--rm", container, base)
        shutil.rmtree(root)
        options = ["--isolation", "chroot", "--format", "docker", "--tag", NAME]
        options += ["--build-arg", f"PYTHON_IMAGE={base}", "--file", str(CONTAINERFILE)]
        self._buildah("bud", *options, str(ROOT))

    @cached_property
    def _config(self) -> dict[str, Any]:
        image = json.loads(self._buildah("inspect", "--type", "image", NAME))
        return dict(image["Docker"]["config"])

    @cached_property
    def _root(self) -> Path:
        return Path(self._buildah("mount", self._buildah("from", NAME)))

    @cached_property
    def _volume(self) -> Path:
        """An empty folder with the owner and mode of /data in the image."""
        folder, original = self.scratch / "volume", (self._root / "data").stat()
        folder.mkdir()
        os.chown(folder, original.st_uid, original.st_gid)
        folder.chmod(original.st_mode)
        return folder

    def size(self) -> float:
        """The size of the image in MB."""
        number, unit = self._buildah("images", "--format", "{{.Size}}", NAME).split()
        return float(number) * {"MB": 1, "GB": 1000}[unit]

    def health_check(self) -> list[str]:
        return list(self._config["Healthcheck"]["Test"][1:])

    def _restricted(self, *arguments: str) -> list[str]:
        """A command as the user of the image, with its environment and without capabilities."""
        user, folder = self._config["User"], self._config["WorkingDir"]
        rights = [f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
        rights += ["--bounding-set=-all", "--inh-caps=-all"]
        environment = ["env", "-i", f"--chdir={folder}", *self._config["Env"]]
        return ["setpriv", *rights, *environment, *arguments]

    def command(self, *arguments: str, entrypoint: str = "") -> list[str]:
        """The command that runs the image, by default with its own entry point and command."""
        program = [entrypoint] if entrypoint else self._config["Entrypoint"]
        namespaces = ["unshare", "--mount", "--net", "sh", "-ec", RUN_IN_ROOT, "sh"]
        restricted = self._restricted(*program, *(arguments or self._config["Cmd"]))
        return [*namespaces, str(self._root), str(self._volume), *restricted]

    def command_beside(self, container: subprocess.Popen[str], *arguments: str) -> list[str]:
        """The command that runs a program in the running container.

        Waits until the container has its root: before, the command would run on this machine.
        """
        root = Path(f"/proc/{container.pid}/root")
        while container.poll() is None and root.resolve() == Path("/"):
            time.sleep(0.05)
        enter = ["nsenter", f"--target={container.pid}", "--mount", "--net", "--root"]
        return [*enter, *self._restricted(*arguments)]

    def remove(self) -> None:
        mounts = Path("/proc/self/mounts").read_text()
        if str(self.scratch) in mounts:  # nothing must be deleted through a mount
            raise ImageError(f"There is a mount in {self.scratch}: unmount it, and delete it.")
        shutil.rmtree(self.scratch)


Engine = ContainerEngine | BuildahEngine


def choose_engine() -> Engine:
    """Return podman or docker if one has the base image or can pull it; otherwise buildah."""
    (default,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", CONTAINERFILE.read_text(), re.MULTILINE)
    image = os.environ.get("PYTHON_IMAGE", default)
    for program in filter(shutil.which, ("podman", "docker")):
        if any(
            is_command_successful(program, "image", verb, image) for verb in ("inspect", "pull")
        ):
            return ContainerEngine(program, image)
    missing = [name for name in ("buildah", "debootstrap") if not shutil.which(name)]
    if missing or os.geteuid():
        raise ImageError(
            f"podman or docker with the image {image} is needed, or the user root and the Debian "
            f"packages buildah and debootstrap. Missing: {', '.join(missing) or 'root'}."
        )
    # Not /tmp: Debian mounts it without device files, which debootstrap creates.
    folder = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108
    return BuildahEngine(Path(tempfile.mkdtemp(prefix="merganser-image-", dir=folder)))
