"""The client in JavaScript, in federations of processes over TLS. 80 s."""

from __future__ import annotations

from tests.e2e.foreign import ClientSuite
from tests.support.foreign import marks
from tests.support.node import NODE

pytestmark = marks(NODE)


class TestNodeClient(ClientSuite):
    client = NODE
