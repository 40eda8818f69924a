"""Single facts in the database, by key: those that outlive a process and belong to no round."""

from __future__ import annotations

from fedserver.store.database import Database
from fedserver.store.journal import Statement

KEEP_ROUNDS_FACT = "keep_rounds"
TASK_FACT = "task and its settings"
MEANING_FACT = "what classes and inputs mean"
PAUSED_FACT, PAUSED = "paused", "yes"
LAST_ROUND_FACT = "the round after which to end"
SOURCES_FACT = "what the first model was made of"


def fact(database: Database, key: str) -> str | None:
    """A remembered fact; `None` if there is none of that key."""
    rows = database.query("SELECT value FROM facts WHERE key = ?", key)
    return rows[0][0] if rows else None


def remembering(key: str, value: str) -> Statement:
    """What makes a fact durable. To remember the same once more changes nothing, not even the order of rows."""
    sql = "INSERT INTO facts VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    return Statement(sql, (key, value))
