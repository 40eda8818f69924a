"""The upload desk: what may be uploaded now, how far each upload is, and what becomes of it when it is finished.

`desk` answers the calls; `tray` is what it has at hand; `late` is about updates whose part in the round had ended.
"""

from fedserver.desk.desk import Desk
from fedserver.desk.tray import OpenUpload, UploadStatus

__all__ = ["Desk", "OpenUpload", "UploadStatus"]
