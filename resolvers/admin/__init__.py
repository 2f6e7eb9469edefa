"""Operations on administration: settings, tasks, logs and audits."""
