"""The client in C++, in federations of processes over TLS. 110 s, once built."""

from __future__ import annotations

import pytest

from tests.e2e.foreign import ClientSuite
from tests.e2e.foreign_conformance import ConformanceSuite
from tests.e2e.foreign_endings import EndingSuite
from tests.e2e.foreign_joining import JoiningSuite
from tests.support.cpp import CPP
from tests.support.foreign import marks

# Whichever is the first waits for the build; of two timeouts, the one that stands first is kept.
pytestmark = [pytest.mark.timeout(1_500), *marks(CPP)]


class TestCppClient(ClientSuite):
    client = CPP


class TestEndingsInCpp(EndingSuite):
    client = CPP


class TestJoiningInCpp(JoiningSuite):
    client = CPP


class TestConformanceInCpp(ConformanceSuite):
    client = CPP
