"""The client in Go, in federations of processes over TLS. 110 s."""

from __future__ import annotations

from tests.e2e.foreign import ClientSuite
from tests.e2e.foreign_conformance import ConformanceSuite
from tests.e2e.foreign_encodings import EncodingSuite
from tests.e2e.foreign_endings import EndingSuite
from tests.e2e.foreign_joining import JoiningSuite
from tests.support.foreign import marks
from tests.support.go import GO

pytestmark = marks(GO)


class TestGoClient(ClientSuite):
    client = GO


class TestEndingsInGo(EndingSuite):
    client = GO


class TestJoiningInGo(JoiningSuite):
    client = GO


class TestEncodingsInGo(EncodingSuite):
    client = GO


class TestConformanceInGo(ConformanceSuite):
    client = GO
