"""Folders that are not Python packages: in a wheel inside `merganser`, in a checkout at the top."""

from pathlib import Path


def bundled_folder(name: str) -> Path:
    """Return the path of a folder, such as `migrations`."""
    package = Path(__file__).parent
    folder_in_wheel = package / name
    return folder_in_wheel if folder_in_wheel.is_dir() else package.parent / name
