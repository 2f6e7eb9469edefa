"""Add the indexes of user lists by quota and by second factor."""

from alembic import op

revision = "0111"
down_revision = "0110"
expand_only = True


def upgrade() -> None:
    op.create_index("ix_users_of_domain_by_used", "users", ["domain_id", "used", "id"])
    for name, columns, condition in (
        ("ix_users_full", "id", "quota > 0 AND used >= quota"),
        ("ix_users_with_factor", "username_key, id", "second_factors <> '[]'"),
        ("ix_users_without_factor", "username_key, id", "second_factors = '[]'"),
    ):
        op.execute(f"CREATE INDEX {name} ON users ({columns}) WHERE {condition}")


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a copy of the database instead")
