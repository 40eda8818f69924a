"""The rules of docs/protocol.md that a server can see a client keep or break, in the document's order."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """How much a rule obliges, in the words of RFC 2119."""

    MUST = "MUST"
    SHOULD = "SHOULD"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `words` is what a client does that keeps it."""

    name: str
    level: Level
    words: str


_MUST = {
    "R-CON-2": "before its first certificate it trusts a server by its fingerprint alone",
    "R-CON-3": "it shows its certificate, and talks only to servers of the federation's authority",
    "R-JOIN-2": "it checks the token's fingerprint before it sends the secret",
    "R-JOIN-3": "it enrols with the token's name and secret, and a request signed by its key",
    "R-JOIN-5": "it takes only a certificate for its name and key, of the authority beside it",
    "R-SCH-2": "its schema has the digest of the task's schema",
    "R-SCH-5": "its meaning is the task's, within the bounds",
    "R-HEL-1": "the first message of a stream is hello, and no later one is",
    "R-HEL-2": "hello comes as soon as the stream is open",
    "R-HEL-3": "its name may name a client",
    "R-HEL-4": "it has at least one example",
    "R-HEL-5": "its software's name is short and plain",
    "R-HEL-6": "asked for its schema, it sends all of it in parts, and never else",
    "R-HEL-7": "declined, it does not come back",
    "R-HEL-9": "superseded twice, it stops",
    "R-RND-1": "it answers every offer",
    "R-RND-2": "it uploads after confirm, and trains by the plan that was confirmed",
    "R-RND-3": "an offer with another id ends the work on the one before",
    "R-RND-4": "an offer that comes again is accepted again and finished",
    "R-RND-5": "an update once announced stays the same, also through cuts and restarts",
    "R-RND-6": "after cancel and withdraw it sends nothing more for the offer, and takes the next",
    "R-RND-7": "what was agreed ends in an update or in failure",
    "R-RND-9": "after federation_outcome it does not connect again",
    "R-RND-10": "it gives a sign of life in every lease",
    "R-RND-12": "fractions of progress are 0 to 1",
    "R-MOD-1": "the model digest is that of the canonical description",
    "R-MOD-2": "manifest parts are in order and within their bounds",
    "R-MOD-3": "digests have 32 bytes and sizes that fit",
    "R-MOD-4": "encoded sizes fit their encoding",
    "R-MOD-5": "the manifest has the schema's names, types, shapes and order",
    "R-MOD-6": "metrics are few, named and finite",
    "R-CH-1": "no chunk is larger than was agreed",
    "R-CH-2": "every chunk has its crc32c",
    "R-CH-3": "no chunk leaves a gap",
    "R-CH-4": "no chunk reaches past the body's end",
    "R-DL-1": "a manifest of another model is not taken",
    "R-DL-2": "indexes ascend, and what it has it does not ask for",
    "R-DL-3": "damaged chunks and tensors are not used but asked for again",
    "R-UP-1": "the header comes first and once, with number and digest of the whole",
    "R-UP-2": "the manifest lists every tensor",
    "R-UP-3": "the examples used are at least 1 and at most twice those of hello",
    "R-UP-5": "missing tensors out of order are not taken",
    "R-UP-6": "what it uploads is what its digests say, also in the middle of a resumed upload",
    "R-UP-7": "the same upload has the same manifest each time",
    "R-UP-8": "chunks name their upload",
    "R-UP-9": "it begins at committed_size, leaves no gap, and keeps the window",
    "R-UP-11": "it waits for an answer only after half a window or all of the body",
    "R-UP-12": "it follows committed_size where the server has it, also backwards after DIGEST_MISMATCH",
    "R-UP-14": "it finishes its uploads",
    "R-UP-17": "after a cut it asks for the status before anything else, and does as that says",
    "R-ENC-1": "only encodings of the welcome are used",
    "R-ENC-2": "lossy encodings are used for float32 alone",
    "R-ENC-3": "digests are those of what encoded bytes decode to",
    "R-TIM-4": "the negotiation has no deadline",
    "R-TIM-5": "it comes back after an error of the network, later each time",
    "R-TIM-6": "it waits as long as LIMIT_EXCEEDED says",
    "R-ERR-2": "an error without a reason is the network's: it asks again",
    "R-ERR-3": "every reason is answered as the table of errors says",
    "R-EVO-1": "unknown fields change nothing",
    "R-EVO-2": "unknown kinds of messages are ignored",
    "R-EVO-3": "unknown enum values are read as the table says",
    "R-VER-1": "its versions are a range, and what is agreed is in it",
}
_SHOULD = {
    "R-JOIN-4": "where the answer to joining is lost, the same key comes again",
    "R-JOIN-6": "it renews its certificate before that ends",
    "R-RND-5": "what was trained is kept until another offer, and not trained again",
    "R-RND-9": "it closes its side when it has the final model",
    "R-DL-4": "a download that was cut goes on where it was",
}

RULES = tuple(
    Rule(name, level, words)
    for level, table in ((Level.MUST, _MUST), (Level.SHOULD, _SHOULD))
    for name, words in table.items()
)
"""Every rule that is looked at."""
