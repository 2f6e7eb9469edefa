"""A file system like that of `python:3-slim`, made of Debian packages by debootstrap."""

import shutil
from pathlib import Path

from tests.support.container_image.run_command import run_command

PACKAGES = "python3-venv,python3-pip-whl,ca-certificates,netbase,tzdata"
# Moves Python to /usr/local, installs pip there, and deletes what the slim image doesn't have.
MOVE_PYTHON = r"""
rm -rf /usr/local/lib/python3*
mv /usr/lib/python3.* /usr/local/lib/
mv /usr/bin/python3* /usr/local/bin/
ln -s python3 /usr/local/bin/python
packages=$(echo /usr/local/lib/python3.*)/site-packages
python -m zipfile -e /usr/share/python-wheels/pip-*.whl "$packages"
printf '#!/bin/sh\nPYTHONPATH=%s exec python -m pip "$@"\n' "$packages" > /usr/local/bin/pip
chmod 755 /usr/local/bin/pip
find /usr/local /usr/lib/python3 -depth -name __pycache__ -exec rm -r '{}' +
cd /usr/share
rm -rf doc man info locale lintian python-wheels
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig /var/log/*
"""


def create_debian_base(folder: Path) -> None:
    """Create the root folder of a base image, with the Python and the release of this Debian."""
    codename = run_command("sh", "-c", '. /etc/os-release && echo "$VERSION_CODENAME"').strip()
    arguments = ["--variant=minbase", f"--include={PACKAGES}", codename, str(folder)]
    # In a mount namespace, so that no mount is left if debootstrap fails.
    run_command("unshare", "--mount", "debootstrap", *arguments)
    run_command("chroot", str(folder), "sh", "-ec", MOVE_PYTHON)
    # Those of this machine, which can have certificates of a local proxy
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", folder / "etc/ssl/certs")
