"""Operations on users, their settings and quota."""
