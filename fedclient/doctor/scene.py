"""What the checks look at, and what earlier ones have found for later ones."""

from __future__ import annotations

from dataclasses import dataclass

from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.events import FederationOnOffer
from fedtask.task import Task


@dataclass(slots=True)
class Scene:
    """One site, before it takes part. What is `None` has not been found (yet)."""

    config: ClientConfig
    connection: Connection
    certificate: bytes | None = None
    """The server's, PEM, before it is known whether to trust it."""
    federation: FederationOnOffer | None = None
    clock_ahead_seconds: float | None = None
    refusal: str = ""
    """Why the server answers nothing but that this site may not ask; empty where it may."""
    """How far this machine's clock is before the server's."""
    task: Task | None = None
    told_of_folders: frozenset[str] = frozenset()
    """Warnings that the check of the class folders has given already; reading the data gives them too."""
