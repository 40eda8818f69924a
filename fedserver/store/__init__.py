"""What the server keeps: facts in SQLite, weights in files named by digest, in one state directory."""

from fedserver.store.errors import DamagedFile, StateError
from fedserver.store.models import ModelStore
from fedserver.store.reading import StateReader
from fedserver.store.state import State
from fedserver.store.updates import UpdateFacts
from fedserver.store.upload_file import Upload
from fedserver.store.uploads import UploadState, UploadStore

__all__ = [
    "DamagedFile",
    "ModelStore",
    "State",
    "StateError",
    "StateReader",
    "UpdateFacts",
    "Upload",
    "UploadState",
    "UploadStore",
]
