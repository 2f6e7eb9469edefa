"""Operations on messages, labels and threads."""
