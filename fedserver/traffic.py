"""How many bytes of weights the server has moved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """Bytes since the last round's record was made: of updates `received` durably, of models `sent`.

    A client fetches a new model as soon as it hears of it, which may be before the next round is open: what moves
    between two rounds counts to the later one, so that no byte is missing from the sum.

    A server that takes up the round of an earlier process knows what that one received, by what is committed of the
    round's updates. What it `sent` is recorded nowhere and is missing: the true sum may be higher.
    """

    received: int = 0
    sent: int = 0

    def take(self) -> Traffic:
        """What has moved, for a round's record; counting begins anew."""
        taken = Traffic(self.received, self.sent)
        self.received = self.sent = 0
        return taken
