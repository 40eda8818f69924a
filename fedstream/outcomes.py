"""How offers end: the words of `Outcome` in the contract, as states, records, messages and tables have them."""

from __future__ import annotations

import enum


class Outcome(enum.Enum):
    """How an offer ended. Every offer ends in exactly one of these, so their counts add up to the offers made."""

    COMPLETED = "completed"
    QUARANTINED = "quarantined"
    DECLINED = "declined"
    WITHDRAWN = "withdrawn"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
