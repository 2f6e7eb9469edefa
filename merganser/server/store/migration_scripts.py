"""Directory of the Alembic migrations, in a wheel and in a checkout."""

from pathlib import Path

_PACKED = Path(__file__).parents[2] / "migrations"  # a checkout has it at the top
SCRIPTS = _PACKED if _PACKED.is_dir() else Path(__file__).parents[3] / "migrations"
