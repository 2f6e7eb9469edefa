"""Operations on administration: settings, tasks, logs and legal holds."""
