"""What the server keeps: facts in SQLite, weights in files named by digest, in one state directory."""

from fedserver.store.models import ModelStore
from fedserver.store.state import State, StateError
from fedserver.store.uploads import Upload, UploadFolder

__all__ = ["ModelStore", "State", "StateError", "Upload", "UploadFolder"]
