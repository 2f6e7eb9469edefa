"""Directory of the Alembic migrations, in a wheel and in a checkout."""

from pathlib import Path

_FOLDER_IN_WHEEL = Path(__file__).parents[2] / "migrations"  # a checkout has it at the top
MIGRATIONS_FOLDER = (
    _FOLDER_IN_WHEEL if _FOLDER_IN_WHEEL.is_dir() else Path(__file__).parents[3] / "migrations"
)
