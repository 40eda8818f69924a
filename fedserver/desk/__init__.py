"""The upload desk: what may be uploaded now, how far each upload is, and what becomes of it when it is finished.

`desk` answers the calls; `tray` is what it has at hand, and all that it knows of uploads. An upload ends in one of two
ways: `finishing` (its part in the round goes on: checked, stored and folded) or `late` (it had ended: kept aside if it
is whole, else noted). `restoring` takes up what an earlier process left. `committer` makes bytes durable while more are
received, in `threads` of their own; how much may be on its way meanwhile, `window` says.
"""

from fedserver.desk.committer import Committer
from fedserver.desk.desk import Desk
from fedserver.desk.tray import OpenUpload, UploadStatus

__all__ = ["Committer", "Desk", "OpenUpload", "UploadStatus"]
