"""A state directory as it can be looked at without being its server, or beside one."""

from __future__ import annotations

from pathlib import Path

from fedserver.store.errors import StateError
from fedserver.store.folder import MODELS, UPDATES, is_state_directory, open_database, require_database, unreadable
from fedserver.store.models import ModelStore
from fedstream.files import RealFileSystem


class StateReader:
    """Opens a state directory for reading only. A server may run on it meanwhile; nothing is written.

    Args:
        folder: the directory.

    Raises:
        StateError: it is no state directory, cannot be looked at, or its database is damaged, gone or of another
            version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        try:
            require_database(self.folder)
            if not is_state_directory(self.folder):
                raise StateError(f"{folder} is no state directory of a server; give its --state")
            self.database = open_database(self.folder, read_only=True)
        except OSError as error:
            raise unreadable(self.folder, error) from error
        self.models_folder, self.updates_folder = self.folder / MODELS, self.folder / UPDATES

    def models(self) -> ModelStore:
        """Its models, to be looked up."""
        return ModelStore(self.models_folder, self.database, RealFileSystem())

    def close(self) -> None:
        """Close the database."""
        self.database.close()
