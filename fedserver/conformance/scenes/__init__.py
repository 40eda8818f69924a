"""All scenes, in the order in which they are played."""

from __future__ import annotations

from fedserver.conformance.scenes import downloads, encodings, errors, joining, offers, sessions, uploads
from fedserver.conformance.scenes.scene import Scene

SCENES: tuple[Scene, ...] = (
    *joining.SCENES,
    *sessions.SCENES,
    *offers.SCENES,
    *downloads.SCENES,
    *uploads.SCENES,
    *encodings.SCENES,
    *errors.SCENES,
)
