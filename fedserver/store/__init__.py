"""What the server keeps: facts in SQLite, weights in files named by digest, in one state directory."""

from fedserver.store.models import ModelStore
from fedserver.store.state import State, StateError
from fedserver.store.uploads import UpdateFacts, Upload, UploadState, UploadStore

__all__ = ["ModelStore", "State", "StateError", "UpdateFacts", "Upload", "UploadState", "UploadStore"]
