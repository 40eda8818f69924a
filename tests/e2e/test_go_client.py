"""The client in Go, in federations of processes over TLS. 100 s."""

from __future__ import annotations

import numpy as np

from fedtask.brain_mri_head.features import Features, write_features
from tests.e2e.foreign import TASK, ClientSuite, ledger_of, model_of, stored_updates, trained_in_python
from tests.e2e.foreign_conformance import ConformanceSuite
from tests.e2e.foreign_encodings import EncodingSuite
from tests.e2e.foreign_joining import JoiningSuite
from tests.support.features import SETTINGS, site_features
from tests.support.foreign import marks
from tests.support.go import GO
from tests.support.processes import Stage

pytestmark = marks(GO)


class TestGoClient(ClientSuite):
    client = GO

    def test_update_of_a_site_without_validation_examples_is_what_python_makes_of_it(self, scene: Stage) -> None:
        settings = SETTINGS | {"patience": "1", "epochs": "30", "class_weights": "balanced"}
        site = site_features(seed=1, num_train=70, num_val=0)
        data = scene.folder / "site.features"
        write_features(Features(site.train.take(np.arange(70) % 3 > 0), site.val, site.meaning), data)
        server = scene.server("--rounds", "1", "--min-clients", "1", task=TASK, **settings)
        client = self.start(scene, "alpha", server.listening, data)
        assert (client.wait(), server.wait()) == (0, 0), client.text
        (entry,) = ledger_of(server)
        expected = trained_in_python(model_of(server, 0), data, entry, "alpha", settings)
        for name, values in stored_updates(server, 1)["alpha"].changed.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=1e-9)


class TestJoiningInGo(JoiningSuite):
    client = GO


class TestEncodingsInGo(EncodingSuite):
    client = GO


class TestConformanceInGo(ConformanceSuite):
    client = GO
