"""What the server keeps: facts in SQLite, weights in files named by digest, in one state directory.

The directory
- `state`, `reading`: opened by the one process that writes, and looked at beside it.
- `folder`: what is in it under which name, and whether it is in use.
- `keys`: keys and certificates in it.
- `retention`: what is kept and for how long.
- `backup`, `restore`: a copy of a directory at work, and a directory made of one.
- `disk`: what a disk can refuse, in words.
- `errors`: what can be wrong with what is stored.

The database
- `database`: opening, checking and converting it.
- `write_ahead_log`, `row_checks`: damage that SQLite would not see, in its log and in rows.
- `journal`: all writes from the event loop, in group commits.
- `rows`: what rows hold as JSON.
- `facts`: single facts by key.
- `rounds`, `history`, `scores`: a round at work, rounds that are over, and which of their scores can be compared.
- `clients`, `members`: clients that were met, and sites that were invited.
- `ledger`: the chain of entries.

Weights
- `models`: published models.
- `uploads`, `upload_file`: updates on their way in: their rows, and their bytes.
- `updates`: updates that are kept.
- `blobs`: files held against their manifests.
"""

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
