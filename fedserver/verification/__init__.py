"""Whether what is stored is what was made: the ledger's chain, every file's digest, and every aggregate made again.

Works on a state directory with or without a server on it, and never writes. `verify` goes from the outside in:
`chain` (entries against their hashes and against the other tables), `files` (bytes against manifests), `recompute`
(the aggregate from the base and the updates). Whatever differs is a `Difference` that says where.
"""

from fedserver.verification.findings import Difference, RoundCheck, Verdict
from fedserver.verification.verification import UnknownRoundNumber, verify

__all__ = ["Difference", "RoundCheck", "UnknownRoundNumber", "Verdict", "verify"]
