"""What a client in another language that joins by itself is tested for. 15 s."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import grpc
import pytest
import time_machine

from fedclient.exit_codes import ExitCode
from fedclient.identity import IdentityFolder, Membership
from fedstream.certificates import issue_server, make_authority
from fedstream.join_token import JoinToken
from fedstream.tls import Identity, server_credentials
from tests.e2e.foreign import TASK
from tests.support.features import SETTINGS, write_site
from tests.support.foreign import ForeignClient
from tests.support.handshakes import identity_of
from tests.support.joining import invited, joined
from tests.support.processes import PATIENCE_SECONDS, Running, RunningServer, Said, Stage, until


@contextlib.contextmanager
def answering(identity: Identity) -> Iterator[str]:
    """The address of a server of which a handshake is all that there is."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(identity, None))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


class JoiningSuite:
    """From a token to a certificate, to a federation, to the next certificate."""

    client: ClassVar[ForeignClient]

    def join(self, folder: Path, *words: str) -> Said:
        """Run the client's command with these options."""
        self.client.build()
        done = subprocess.run(
            [*self.client.join, "--identity", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def take_part(self, scene: Stage, name: str, identity: Path, data: Path, *options: str) -> Running:
        """Start a client that knows of the server and its own name only what joining left."""
        folder = scene.folder / name
        words = [*self.client.run, "--identity", str(identity), "--data", str(data)]
        return scene.launch(name, [*words, "--out", str(folder), "--state-dir", str(folder / "state"), *options])

    def serve(self, scene: Stage, *options: str, name: str = "server") -> RunningServer:
        return scene.server("--rounds", "1", "--min-clients", "1", *options, name=name, task=TASK, **SETTINGS)

    def invite(self, server: RunningServer, name: str) -> JoinToken:
        return asyncio.run(invited(server.listening.admin_address, name))

    def test_server_whose_certificate_is_not_valid_yet_is_tried_again(self, scene: Stage) -> None:
        self.client.build()
        with time_machine.travel(datetime.now(UTC) + timedelta(days=2)):
            authority = make_authority()
            server = issue_server(authority, [])
        site, words = identity_of(authority, "alpha"), [*self.client.run, "--name", "alpha"]
        files = {"--certificate": site.certificate, "--key": site.key, "--server-ca": authority.certificate}
        for option, content in files.items():
            file = scene.folder / option[2:]
            file.write_bytes(content)
            words += [option, str(file)]
        words += ["--data", str(write_site(scene.folder, seed=1)), "--state-dir", str(scene.folder / "state")]
        with answering(server) as address:
            client = scene.launch("alpha", [*words, "--server", address])
            tries = until("two tries", lambda: client.said("trying again")[1:])
            client.end()
        assert client.process.returncode == ExitCode.TERMINATED
        assert "set this machine's clock" in tries[0]["because"]

    def test_site_joins_with_a_token_and_takes_part(self, scene: Stage) -> None:
        server, identity = self.serve(scene), scene.folder / "identity"
        token = self.invite(server, "alpha")
        said = self.join(identity, server.listening.address, "--token", token.encode())
        assert said.status == ExitCode.FINISHED, said.err
        assert "joined as alpha; the certificate is valid until" in said.out
        folder = IdentityFolder(identity)
        assert folder.membership() == Membership("alpha", server.listening.address)
        folder.credentials().require_valid()
        assert {path.name for path in identity.iterdir()} == {"site.key", "site.crt", "authority.crt", "identity.json"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in identity.iterdir()} == {0o600}
        client = self.take_part(scene, "alpha", identity, write_site(scene.folder, seed=1))
        assert (client.wait(), server.wait()) == (0, 0), client.text

    def test_token_is_read_from_a_file_of_what_was_printed(self, scene: Stage) -> None:
        server, file = self.serve(scene), scene.folder / "invitation.txt"
        file.write_text(
            f"Send this to the site:\n\n    fedclient join --token {self.invite(server, 'alpha').encode()}\n"
        )
        said = self.join(scene.folder / "identity", "--token-file", str(file))
        assert (said.status, "joined as alpha" in said.out) == (ExitCode.FINISHED, True), said.err

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ([], "give the token with --token or with --token-file"),
            (["--token", "word", "--token-file", "file"], "give the token with --token or with --token-file"),
            (["--token-file", "nowhere"], "the token cannot be read: "),
            (["--token-file", "."], "the token cannot be read: "),
        ],
    )
    def test_token_that_is_not_given_once_is_told(self, tmp_path: Path, words: list[str], told: str) -> None:
        said = self.join(tmp_path / "identity", *words)
        assert (said.status, told in said.err) == (ExitCode.BAD_CONFIGURATION, True), said.err

    def test_identity_that_fedclient_left_is_used(self, scene: Stage) -> None:
        server = self.serve(scene)
        assert server.listening.enrolment_address is not None
        folder = asyncio.run(joined(server.listening.admin_address, server.listening.enrolment_address, "alpha"))
        client = self.take_part(scene, "alpha", folder.folder, write_site(scene.folder, seed=1))
        assert (client.wait(), server.wait()) == (0, 0), client.text

    def test_same_token_and_key_again_give_the_same_certificate_and_another_key_none(self, scene: Stage) -> None:
        server, identity = self.serve(scene), scene.folder / "identity"
        token = self.invite(server, "alpha").encode()
        assert self.join(identity, "--token", token).status == ExitCode.FINISHED
        before = (identity / "site.crt").read_bytes()
        assert self.join(identity, "--token", token).status == ExitCode.FINISHED
        assert (identity / "site.crt").read_bytes() == before
        said = self.join(scene.folder / "thief", "--token", token)
        assert (said.status, "TOKEN_USED" in said.err) == (ExitCode.UNTRUSTED, True)

    def test_token_is_kept_from_a_server_with_another_certificate(self, scene: Stage) -> None:
        server, other = self.serve(scene), self.serve(scene, name="other")
        token, address = self.invite(server, "alpha"), other.listening.enrolment_address
        assert address is not None
        said = self.join(scene.folder / "identity", "--token", token.encode(), "--enrolment", address)
        assert said.status == ExitCode.UNTRUSTED
        assert "Nothing was sent to it" in said.err
        assert "enrolment refused" not in (other.state / "audit.jsonl").read_text()

    @pytest.mark.parametrize(
        "words", [[], ["--token", "fsj1_AAAA"], ["--token", "word"], ["nowhere", "--token", "word"]]
    )
    def test_wrong_words_are_told_before_anything_is_made(self, tmp_path: Path, words: list[str]) -> None:
        said = self.join(tmp_path / "identity", *words)
        assert said.status == ExitCode.BAD_CONFIGURATION
        assert not (tmp_path / "identity").exists()

    def test_certificate_renews_itself(self, scene: Stage) -> None:
        server, identity = (
            self.serve(scene, "--certificate-days", "0.01", "--min-clients", "2"),
            scene.folder / "identity",
        )
        assert self.join(identity, "--token", self.invite(server, "alpha").encode()).status == ExitCode.FINISHED
        before = (identity / "site.crt").read_bytes()
        client = self.take_part(scene, "alpha", identity, write_site(scene.folder, seed=1))
        until("the renewal", lambda: client.said("certificate renewed"))
        until("the next certificate", lambda: (identity / "site.crt").read_bytes() != before)
        server.until("alpha to be here", lambda look: look.clients.get("alpha") == "idle")
        assert '"renewed"' in (server.state / "audit.jsonl").read_text()
        said = scene.command("fedserver", "revoke", "alpha", "--state", str(server.state))
        assert said.status == 0, said.err
        assert client.wait() == ExitCode.UNTRUSTED
        assert "this site has been revoked" in client.text
