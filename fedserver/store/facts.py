"""Single facts in the database, by key."""

from __future__ import annotations

from fedserver.store.database import Database
from fedserver.store.journal import Statement


def fact(database: Database, key: str) -> str | None:
    """A remembered fact; `None` if there is none of that key."""
    rows = database.query("SELECT value FROM facts WHERE key = ?", key)
    return rows[0][0] if rows else None


def remembering(key: str, value: str) -> Statement:
    """What makes a fact durable. To remember the same once more changes nothing, not even the order of rows."""
    sql = "INSERT INTO facts VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    return Statement(sql, (key, value))
