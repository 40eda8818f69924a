"""Clients as rows, so that a new process knows those that the last one met."""

from __future__ import annotations

from dataclasses import dataclass

from fedserver.coordinator.population import Client, ClientState, Introduction
from fedserver.store.database import Database
from fedserver.store.journal import Statement
from fedserver.store.rows import read_row, row_text


@dataclass(frozen=True, slots=True)
class ClientRow:
    """A client as it is stored; times in unix seconds. How often it was in a global model, the rounds' records say."""

    introduction: Introduction
    state: ClientState
    reason: str
    first_seen: float
    last_seen: float


def keeping(client: Client) -> Statement:
    """What makes a client's record durable."""
    row = ClientRow(client.introduction, client.state, client.reason, client.first_seen, client.last_seen)
    return Statement("INSERT OR REPLACE INTO clients VALUES (?, ?)", (client.name, row_text(ClientRow, row)))


def forgetting(name: str) -> Statement:
    """What removes a client's record."""
    return Statement("DELETE FROM clients WHERE name = ?", (name,))


def kept_clients(database: Database) -> list[Client]:
    """All clients of which there is a record, the one written last at the end.

    Raises:
        StateError: a row is damaged.
    """
    # A row that is replaced gets a new rowid, higher than all others.
    rows = database.query("SELECT row FROM clients ORDER BY rowid")
    return [_client(read_row(ClientRow, text, "clients")) for (text,) in rows]


def _client(row: ClientRow) -> Client:
    return Client(row.introduction, row.state, row.first_seen, row.last_seen, row.reason)
