"""Joining as the README tells it, with real processes: init, invite, join, run, and what is left behind."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from fedclient.calls import Patience
from fedclient.exit_codes import ExitCode, Stop
from fedclient.identity import IdentityFolder
from fedclient.join import join as enter
from fedserver.addresses import lasting_port
from fedstream.certificates import facts_of, issue_site, make_authority, make_key, make_request, read_request
from fedstream.join_token import JoinToken
from tests.support.processes import PATIENCE_SECONDS, Running, Said, Stage, stage, until

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(300)]

SITES = ("site-a", "site-b", "site-c")
TOKEN = re.compile(r"fsj1_[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Joined:
    """A federation that is over, with all that was said."""

    scene: Stage
    state: Path
    tokens: dict[str, str]
    joins: dict[str, Said]
    clients: dict[str, Running]
    server: Running
    command_line: bytes
    statuses: dict[str, int]


def invite(scene: Stage, state: Path, port: int, name: str) -> str:
    said = scene.command("fedserver", "invite", name, "--state", str(state))
    assert said.status == 0, said.err
    (token,) = TOKEN.findall(said.out)
    assert f"fedclient join 127.0.0.1:{port} --token {token}" in said.out
    return str(token)


def join(scene: Stage, name: str, token: str, number: int) -> Said:
    """The token from the command line, a file or standard input: each way once."""
    identity = ["--identity", str(scene.folder / name / "identity")]
    file = scene.folder / f"{name}.token"
    file.write_text(f"{token}\n")
    way = [["--token", token], ["--token-file", str(file)], ["--token", "-"]][number]
    return scene.command("fedclient", "join", *way, *identity, said=token if way[-1] == "-" else "")


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    """Two sites are invited before the server runs, one while it does."""
    with stage(tmp_path_factory.mktemp("joining")) as scene:
        state, port = scene.folder / "state", lasting_port()
        listen = ("--listen", f"127.0.0.1:{port}")
        assert scene.command("fedserver", "init", "--state", str(state), *listen).status == 0
        tokens = {name: invite(scene, state, port, name) for name in SITES[:2]}
        command = [
            "fedserver.cli",
            "run",
            "--task",
            "linear",
            "--state",
            str(state),
            "--out",
            str(scene.folder / "out"),
        ]
        options = ["--rounds", "2", "--min-clients", "3", "--holdout", "phantom", "--log-level", "debug"]
        server = scene.start("server", [*command, *options])
        until("the server to serve", lambda: (state / "server.json").exists() and server.said("serving"))
        tokens |= {SITES[2]: invite(scene, state, port, SITES[2])}
        joins = {name: join(scene, name, tokens[name], number) for number, name in enumerate(SITES)}
        command_line = _command_line(server.process.pid)
        clients = {name: scene.start(name, _run(scene, name, f"{number}/3")) for number, name in enumerate(SITES)}
        statuses = {name: client.wait() for name, client in clients.items()}
        statuses["server"] = server.wait()
        yield Joined(scene, state, tokens, joins, clients, server, command_line, statuses)


def _command_line(pid: int) -> bytes:
    """What everybody on the machine can read of a process; nothing where there is no such file."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes() if path.exists() else b""


def _run(scene: Stage, name: str, shard: str) -> list[str]:
    folder = scene.folder / name
    command = ["fedclient.cli", "run", "--identity", str(folder / "identity"), "--data", "phantom", "--shard", shard]
    return [*command, "--out", str(folder), "--state-dir", str(folder / "state"), "--log-level", "debug"]


def test_three_sites_that_were_invited_join_and_finish(joined: Joined) -> None:
    assert {name: said.status for name, said in joined.joins.items()} == dict.fromkeys(SITES, 0)
    assert joined.joins["site-a"].out.startswith("joined as site-a; the certificate is valid until ")
    assert joined.statuses == dict.fromkeys((*SITES, "server"), 0), joined.server.text


def test_members_leave_no_failed_handshake_in_the_servers_output(joined: Joined) -> None:
    assert "Handshake failed" not in joined.server.text


def test_sites_are_listed_with_their_state_and_the_end_of_their_certificates(joined: Joined) -> None:
    listed = joined.scene.command("fedserver", "clients", "--state", str(joined.state), "--json").json["sites"]
    assert [(one["name"], one["state"], one["invited_until"]) for one in listed] == [
        (name, "enrolled", "") for name in SITES
    ]
    ends = [facts_of((joined.scene.folder / name / "identity" / "site.crt").read_bytes()).expires for name in SITES]
    assert [one["certificate_until"] for one in listed] == [f"{end:%Y-%m-%d %H:%M:%S} UTC" for end in ends]
    assert all(one["last_seen"] for one in listed)


def test_status_names_the_sites_that_were_invited_and_never_came(scene: Stage) -> None:
    server = scene.server("--min-clients", "2")
    state = ("--state", str(server.state))
    assert scene.command("fedserver", "invite", "site-a", *state).status == 0
    assert scene.command("fedserver", "invite", "site-b", *state).status == 0
    assert scene.command("fedserver", "revoke", "site-b", *state).status == 0
    assert "Not seen yet: site-a (invited)\n" in scene.command("fedserver", "status", *state).out


def test_audit_log_says_who_was_invited_and_who_joined(joined: Joined) -> None:
    lines = [json.loads(line) for line in (joined.state / "audit.jsonl").read_text().splitlines()]
    told = [(line["event"], line.get("site", "")) for line in lines]
    assert told == [
        ("authority made", ""),
        *(("invited", name) for name in SITES),
        *(("enrolled", name) for name in SITES),
    ]


def test_no_token_and_no_key_is_in_a_log_or_the_database_or_the_process_list(joined: Joined) -> None:
    keys = [*joined.state.glob("*.key"), *joined.scene.folder.glob("*/identity/site.key")]
    secrets = [line for path in keys for line in path.read_text().splitlines() if "PRIVATE" not in line]
    assert len(keys) == 5
    searched = [
        *joined.scene.folder.glob("*.log"),
        *(joined.scene.folder / "out").rglob("*"),
        joined.state / "audit.jsonl",
    ]
    searched += [*joined.state.glob("state.db*"), joined.state / "server.json"]
    contents = {path.name: path.read_bytes() for path in searched if path.is_file()}
    contents["the server's command line"] = joined.command_line
    words = [*secrets, *joined.tokens.values(), *(token[5:37] for token in joined.tokens.values())]
    found = [(name, word[:8]) for name, data in contents.items() for word in words if word.encode() in data]
    assert found == []
    assert {"server.log", "site-a.log", "state.db"} <= set(contents)


def test_keys_are_readable_by_their_owner_only(joined: Joined) -> None:
    private = [*joined.state.glob("*.key"), *joined.state.glob("*.crt"), joined.state / "audit.jsonl"]
    private += [path for path in joined.scene.folder.glob("*/identity/*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert len(private) == 4 + 1 + 3 * 4


def test_private_key_of_a_site_is_not_at_the_server(joined: Joined) -> None:
    key = (joined.scene.folder / "site-a" / "identity" / "site.key").read_bytes().splitlines()[1]
    for path in joined.state.rglob("*"):
        assert not path.is_file() or key not in path.read_bytes(), path


def test_identity_folder_of_one_site_is_not_given_to_another(joined: Joined) -> None:
    identity = str(joined.scene.folder / "site-a" / "identity")
    said = joined.scene.command("fedclient", "join", "--token", joined.tokens["site-b"], "--identity", identity)
    assert (said.status, "is the identity of site-a at 127.0.0.1:" in said.err) == (ExitCode.BAD_CONFIGURATION, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give the token with --token or with --token-file"),
        (["--token", "fsj1_x"], "the join token is damaged: copy it again, whole"),
        (["--token", "secret"], "this is no join token: one begins with fsj1_, as `fedserver invite` prints it"),
        (["--token-file", "nowhere"], "the token cannot be read"),
    ],
)
def test_token_that_is_none_is_refused_before_anything_is_sent(tmp_path: Path, words: list[str], message: str) -> None:
    said = Stage(tmp_path).command("fedclient", "join", *words, "--identity", str(tmp_path / "identity"))
    assert (said.status, said.out) == (ExitCode.BAD_CONFIGURATION, "")
    assert f"fedclient: {message}" in said.err
    assert not (tmp_path / "identity").exists()


def test_sites_with_certificates_of_their_own_authority_take_part_without_an_invitation(scene: Stage) -> None:
    authority, key = make_authority(), make_key()
    public_key = read_request(make_request(key, "hospital")).public_key
    files = {"ca.pem": authority.certificate, "site.key": key}
    files["site.pem"] = issue_site(authority, "hospital", public_key, timedelta(days=1))
    for name, contents in files.items():
        (scene.folder / name).write_bytes(contents)
    server = scene.server("--rounds", "1", "--min-clients", "2", "--client-ca", str(scene.folder / "ca.pem"))
    brought = ["--certificate", "site.pem", "--key", "site.key", "--server-ca", str(server.state / "authority.crt")]
    command = ["fedclient.cli", "run", "--server", server.listening.address, *brought, "--data", "phantom"]
    hospital = scene.start("hospital", [*command, "--out", "hospital", "--state-dir", "hospital/state"])
    member = scene.client("alpha", server.listening)
    assert (hospital.wait(), member.wait(), server.wait()) == (0, 0, 0), hospital.text
    assert "known_as" in hospital.text
    assert set(server.summary["details"]["rounds"][0]["contributions"][0]) >= {"client_name"}


def test_certificate_renews_itself_while_the_client_runs(scene: Stage) -> None:
    server = scene.server("--rounds", "1", "--min-clients", "2", "--certificate-days", "0.01")
    alpha = scene.client("alpha", server.listening)
    until("the renewal", lambda: alpha.said("certificate renewed"), PATIENCE_SECONDS)
    beta = scene.client("beta", server.listening)
    assert (alpha.wait(), beta.wait(), server.wait()) == (0, 0, 0), alpha.text
    lines = [json.loads(line) for line in (server.state / "audit.jsonl").read_text().splitlines()]
    assert {(line["event"], line["site"]) for line in lines if line["event"] == "renewed"} >= {("renewed", "alpha")}


def test_revoked_client_ends_with_the_reason_and_the_others_go_on(scene: Stage) -> None:
    server = scene.server("--rounds", "1", "--min-clients", "2")
    alpha = scene.client("alpha", server.listening)
    server.until("alpha to be here", lambda look: look.clients.get("alpha") == "idle")
    said = scene.command("fedserver", "revoke", "alpha", "--state", str(server.state))
    assert (said.status, said.out) == (0, "alpha is revoked: 1 certificates, 0 open invitations\n")
    assert alpha.wait() == ExitCode.UNTRUSTED
    assert "this site has been revoked; ask the coordinator" in alpha.text
    others = [scene.client(name, server.listening) for name in ("beta", "gamma")]
    assert [one.wait() for one in others] == [0, 0]
    assert server.wait() == 0
    again = scene.command("fedserver", "revoke", "nobody", "--state", str(server.state))  # no server runs any more
    assert (again.status, again.err) == (2, "fedserver: no site called nobody was invited\n")


def test_server_that_asks_for_no_certificates_invites_nobody(scene: Stage) -> None:
    server = scene.server(open_enrolment=True)
    said = scene.command("fedserver", "invite", "alpha", "--state", str(server.state))
    assert said.status == 1
    assert "was started with --plaintext or --open-enrolment and asks its sites for no certificates" in said.err


def test_joining_at_the_port_for_members_is_told_where_to_join(scene: Stage) -> None:
    server = scene.server()
    said = scene.command("fedserver", "invite", "alpha", "--state", str(server.state))
    (text,) = TOKEN.findall(said.out)
    token, folder = JoinToken.decode(text), IdentityFolder(scene.folder / "identity")
    with pytest.raises(Stop) as caught:
        asyncio.run(enter(token, token.server, token.server, folder, Patience(give_up_after_seconds=0.1)))
    assert caught.value.code is ExitCode.UNREACHABLE
    assert f"it is for sites that have joined: the token says {token.enrolment} for joining" in caught.value.message
    assert asyncio.run(enter(token, token.server, token.enrolment, folder)).startswith("joined as alpha")


def test_invitation_of_a_member_says_that_it_costs_it_its_certificate(scene: Stage) -> None:
    server = scene.server()
    words = "alpha has joined before: once this token is used, the certificate that it has now is refused.\n"

    def said() -> Said:
        return scene.command("fedserver", "invite", "alpha", "--state", str(server.state))

    first = said()
    (token,) = TOKEN.findall(first.out)
    assert scene.command("fedclient", "join", "--token", token, "--identity", str(scene.folder / "alpha")).status == 0
    with_server = said()
    assert scene.command("fedserver", "stop", "--state", str(server.state)).status == 0
    server.wait()
    assert [words in one.out for one in (first, with_server, said())] == [False, True, True]


def test_invitation_by_a_running_server_says_whether_it_takes_an_earlier_one_back(scene: Stage) -> None:
    state = str(scene.server().state)
    said = [scene.command("fedserver", "invite", "alpha", "--state", state) for _ in range(2)]
    assert [one.status for one in said] == [0, 0]
    words = "The earlier token of alpha, which was not used, is taken back.\n"
    assert [words in one.out for one in said] == [False, True]
