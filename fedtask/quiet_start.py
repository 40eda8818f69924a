"""Loading tensorflow for a command whose output a person reads."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_STANDARD_ERROR = 2


def load_tensorflow_quietly() -> None:
    """Load it without what it says of itself, such as that there is no GPU. What fails raises, and is not hidden.

    Whoever has set tensorflow's own level of logging sees what that level shows.
    """
    if _LOG_LEVEL in os.environ or sys.stderr is None:
        import fedtask.frameworks

        return
    os.environ[_LOG_LEVEL] = "3"  # that no GPU can be used counts as an error there
    with _kept_back():
        import fedtask.frameworks  # noqa: F401 - to have it loaded, not to use it here


@contextlib.contextmanager
def _kept_back() -> Iterator[None]:
    """Keep what libraries write to standard error, whatever their level, while they are loaded; show it on failure."""
    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        shown = os.dup(_STANDARD_ERROR)
        os.dup2(said.fileno(), _STANDARD_ERROR)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(shown, said.read())
            raise
        finally:
            os.dup2(shown, _STANDARD_ERROR)
            os.close(shown)
