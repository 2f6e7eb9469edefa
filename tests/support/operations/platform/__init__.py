"""Operations of administrators of the platform."""
