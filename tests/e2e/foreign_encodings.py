"""What a client in another language that knows encodings is tested for. 15 s."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fedclient.exit_codes import ExitCode
from fedserver.services.transfer import TransferServicer
from fedstream.encodings import Encoding
from fedstream.v1 import transfer_pb2
from tests.e2e.foreign import CUT_BYTES, TASK, WIDE, ledger_of, model_of, stored_updates, trained_in_python
from tests.support.features import write_wide_site
from tests.support.foreign import ForeignClient, start
from tests.support.processes import Running, Stage, soon
from tests.support.proxy import proxied
from tests.support.serving import serving

WIDTH = 4096
SETTINGS = {"backbone": "none", "features": str(WIDTH), "epochs": "2", "patience": "0", "learning_rate": "0.01"}
RAW_BYTES = 4 * WIDTH + 4
"""Of an update: a kernel, and a bias that is too small for a lossy encoding."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What a server in this process has left."""

    state: Path


class EncodingSuite:
    """Updates in every encoding, two rounds each, so that what the first left out goes into the second."""

    client: ClassVar[ForeignClient]

    @pytest.mark.parametrize(
        ("encoding", "bytes_sent"),
        [
            (Encoding.ZSTD, None),
            (Encoding.BFLOAT16, 2 * WIDTH + 4),
            (Encoding.BFLOAT16_ZSTD, None),
            (Encoding.INT8, 4 * WIDTH // 256 + WIDTH + 4),
            (Encoding.INT8_ZSTD, None),
        ],
    )
    def test_update_arrives_in_the_encoding_that_the_coordinator_chose(
        self, scene: Stage, encoding: Encoding, bytes_sent: int | None
    ) -> None:
        self.client.build()
        data = write_wide_site(scene.folder, WIDTH, SETTINGS)
        options = ["--rounds", "2", "--min-clients", "1", "--update-encoding", encoding.value]
        server = scene.server(*options, task=TASK, **SETTINGS)
        client = start(scene, self.client, "alpha", server.listening, data)
        assert (client.wait(), server.wait()) == (0, 0), client.text
        sent = [line["bytes"] for line in client.said("sending the update")]
        assert sent == [bytes_sent] * 2 if bytes_sent else 0 < max(sent) < RAW_BYTES
        furthest = 0.0  # what was left out of a round comes on top of the next
        for number, entry in enumerate(ledger_of(server), start=1):
            assert [member.outcome for member in entry.cohort] == ["completed"]
            base = model_of(server, number - 1)
            expected = trained_in_python(base, data, entry, "alpha", SETTINGS)
            changed = stored_updates(server, number)["alpha"].changed
            for name, values in changed.items():
                furthest = max(furthest, float(np.abs(expected[name] - base[name]).max()))
                # bfloat16 has 8 bits, and int8 127 steps for a block's largest.
                atol = furthest / 100 if encoding.is_lossy else self.client.training_error
                np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=atol)

    def test_encoding_that_the_site_does_not_take_is_not_used(self, scene: Stage) -> None:
        self.client.build()
        data = write_wide_site(scene.folder, WIDTH, SETTINGS)
        options = ["--rounds", "1", "--min-clients", "1", "--update-encoding", "int8"]
        server = scene.server(*options, task=TASK, **SETTINGS)
        client = start(scene, self.client, "alpha", server.listening, data, "--update-encoding", "raw")
        assert (client.wait(), server.wait()) == (0, 0), client.text
        assert [line["bytes"] for line in client.said("sending the update")] == [RAW_BYTES]

    async def test_client_killed_in_an_encoded_upload_goes_on_in_the_same_bytes(self, scene: Stage) -> None:
        await asyncio.to_thread(self.client.build)
        data = write_wide_site(scene.folder, int(WIDE["features"]), WIDE)
        options = ["--rounds", "1", "--min-clients", "1", "--update-encoding", Encoding.BFLOAT16.value]
        server = await asyncio.to_thread(scene.server, *options, task=TASK, **WIDE)
        async with proxied(server.listening) as (proxy, near):
            proxy.cut_after(CUT_BYTES, and_refuse=True)  # or a quick client is done before it is killed
            first = start(scene, self.client, "alpha", near, data)
            await soon("the cut", lambda: proxy.cuts == 1)
            first.process.kill()
            await first.ended()
            await asyncio.to_thread(
                server.until, "bytes on its disk", lambda look: look.parts["alpha"].committed_size > 0
            )
            proxy.refusing = False
            second = start(scene, self.client, "alpha", near, data)
            assert (await second.ended(), await server.ended()) == (0, 0), second.text
        assert len(second.said("trained")) == 1  # both processes write to one log
        assert second.said("sending the update")[-1]["committed"] > 0
        assert [member.outcome for entry in ledger_of(server) for member in entry.cohort] == ["completed"]

    async def test_client_killed_before_it_heard_that_its_update_is_there_adds_what_was_left_out_once(
        self, scene: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await asyncio.to_thread(self.client.build)
        data = write_wide_site(scene.folder, WIDTH, SETTINGS)
        clients: list[Running] = []
        finish = TransferServicer.FinishUpload

        async def finish_and_kill(servicer: TransferServicer, *call: Any) -> transfer_pb2.FinishUploadResponse:
            answer: transfer_pb2.FinishUploadResponse = await finish(servicer, *call)
            if len(clients) == 1:
                clients[0].process.kill()
            return answer

        monkeypatch.setattr(TransferServicer, "FinishUpload", finish_and_kill)
        settings: dict[str, Any] = {"rounds": 2, "min_clients": 1, "update_encoding": "int8"}
        async with serving(scene.folder, task=TASK, task_settings=SETTINGS, **settings) as (_, listening):
            for status in (-signal.SIGKILL, ExitCode.FINISHED):
                clients.append(await asyncio.to_thread(start, scene, self.client, "alpha", listening, data))
                assert await clients[-1].ended() == status, clients[-1].text
        server = Folder(scene.folder / "state")
        left_out = np.zeros(WIDTH, np.float32)
        for number, entry in enumerate(ledger_of(server), start=1):
            base = model_of(server, number - 1)
            trained = trained_in_python(base, data, entry, "alpha", SETTINGS)
            changed = stored_updates(server, number)["alpha"].changed
            started, tuned, arrived = (one["head/kernel"].reshape(-1) for one in (base, trained, changed))
            moved = tuned - started + left_out
            left_out = moved - (arrived - started)
            steps = np.abs(moved).reshape(-1, 256).max(axis=1) / 127
            # A code is off by half a step at most. In the second round that is far less than what the first left out.
            most = steps / 2 * 1.05 + self.client.training_error
            assert (np.abs(left_out).reshape(-1, 256).max(axis=1) <= most).all(), number
