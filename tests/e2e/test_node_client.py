"""The client in JavaScript, in federations of processes over TLS. 110 s."""

from __future__ import annotations

from tests.e2e.foreign import ClientSuite
from tests.e2e.foreign_conformance import ConformanceSuite
from tests.e2e.foreign_encodings import EncodingSuite
from tests.e2e.foreign_endings import EndingSuite
from tests.e2e.foreign_joining import JoiningSuite
from tests.support.foreign import marks
from tests.support.node import NODE

pytestmark = marks(NODE)


class TestNodeClient(ClientSuite):
    client = NODE


class TestEndingsInNode(EndingSuite):
    client = NODE


class TestJoiningInNode(JoiningSuite):
    client = NODE


class TestEncodingsInNode(EncodingSuite):
    client = NODE


class TestConformanceInNode(ConformanceSuite):
    client = NODE
