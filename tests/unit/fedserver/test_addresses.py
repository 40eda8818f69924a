"""Where a server listens, what sites are told, and `fedserver init` and `invite` without a server. 5 s."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from fedserver.addresses import (
    Advertised,
    chosen,
    enrolment_listen,
    keep_advertised,
    lasting_port,
    own_addresses,
    reached_as,
)
from fedserver.cli import app
from fedserver.config import ConfigError, load_config
from fedserver.exit_codes import ExitCode
from fedserver.store import State
from fedstream.join_token import JoinToken
from fedstream.tls import fingerprint

pytestmark = pytest.mark.numpy_task


@pytest.mark.parametrize(
    ("listen", "chosen_one", "found"),
    [
        ("0.0.0.0:8443", "", "0.0.0.0:8444"),
        ("[::]:8443", "", "[::]:8444"),
        ("127.0.0.1:0", "", "127.0.0.1:0"),
        ("127.0.0.1:65535", "", "127.0.0.1:0"),
        ("0.0.0.0:8443", "10.0.0.1:443", "10.0.0.1:443"),
    ],
)
def test_enrolment_listens_on_the_next_port_or_where_it_is_told(listen: str, chosen_one: str, found: str) -> None:
    assert enrolment_listen(listen, chosen_one) == found


def test_sites_are_told_the_advertised_name_or_an_address_that_others_can_dial() -> None:
    assert reached_as("0.0.0.0:8443", ["fl.example.org", "other"]) == "fl.example.org:8443"
    assert reached_as("[::]:8443", ["2001:db8::1"]) == "[2001:db8::1]:8443"
    assert reached_as("127.0.0.1:8443", []) == "127.0.0.1:8443"
    assert reached_as("0.0.0.0:8443", []) in [f"{host}:8443" for host in own_addresses()]


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, words)
    return result.exit_code, result.output


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    words = ("--advertise", "fl.example.org", "--listen", "0.0.0.0:9443", "--state", str(folder))
    code, said = run("init", *words)
    assert code == 0
    assert "sites join at fl.example.org:9444 and then reach fl.example.org:9443" in said
    return folder


def test_name_beyond_ascii_is_advertised_and_certified_as_dns_has_it(tmp_path: Path) -> None:
    folder, dns = tmp_path / "state", "xn--klinik-mnchen-3ob.de"
    code, said = run("init", "--advertise", "klinik-münchen.de", "--listen", "0.0.0.0:9443", "--state", str(folder))
    assert (code, f"sites join at {dns}:9444 and then reach {dns}:9443" in said) == (0, True), said
    certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert dns in names.get_values_for_type(x509.DNSName)
    assert load_config(None, {"state": folder, "advertise": ["klinik-münchen.de"]}, chosen).advertise == [dns]


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, "\udcff.de", "fl.example.org:8443", "https://fl.example.org"])
def test_name_that_no_machine_can_have_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    code, said = run("init", "--advertise", name, "--state", str(tmp_path / "state"))
    assert (code, said.startswith("fedserver: --advertise: ")) == (ExitCode.BAD_CONFIGURATION, True), said
    assert not (tmp_path / "state").exists()
    with pytest.raises(ConfigError, match="advertise: "):
        load_config(None, {"advertise": [name]}, chosen)


@pytest.mark.parametrize(("hostname", "found"), [("zürich", "xn--zrich-kva"), ("\udcff", None), ("x" * 64, None)])
def test_machine_of_any_name_gets_a_certificate(
    tmp_path: Path, hostname: str, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: hostname)
    names = list(own_addresses())
    assert names
    assert (found in names) == (found is not None)
    code, said = run("init", "--state", str(tmp_path / "state"))
    assert code == 0, said


def test_run_listens_as_init_was_told_unless_it_is_told_otherwise(state: Path, tmp_path: Path) -> None:
    config = load_config(None, {"state": state}, chosen)
    assert (config.listen, config.advertise) == ("0.0.0.0:9443", ["fl.example.org"])
    (tmp_path / "server.toml").write_text('listen = "10.0.0.1:1"\n')
    config = load_config(tmp_path / "server.toml", {"state": str(state)}, chosen)
    assert (config.listen, config.advertise) == ("10.0.0.1:1", ["fl.example.org"])
    assert load_config(None, {"state": tmp_path / "other"}, chosen).listen == "127.0.0.1:8443"


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_file_of_init_that_is_damaged_is_as_if_there_were_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "addresses.json").write_text(text)
    assert chosen(tmp_path) == {}


def test_init_keeps_what_is_there(state: Path) -> None:
    before = {path.name: path.read_bytes() for path in state.glob("*.*") if path.suffix in (".key", ".crt")}
    assert run("init", "--state", str(state))[0] == 0
    assert {name: (state / name).read_bytes() for name in before} == before
    assert len(before) == 4


def test_init_keeps_what_it_was_told_and_is_not_told_otherwise(state: Path) -> None:
    assert run("init", "--enrol-listen", "0.0.0.0:9500", "--state", str(state))[0] == 0
    for words, enrolment, server in [
        ((), "fl.example.org:9500", "fl.example.org:9443"),
        (("--advertise", "other.example.org"), "other.example.org:9500", "other.example.org:9443"),
        (("--listen", "0.0.0.0:9600", "--enrol-listen", ""), "other.example.org:9601", "other.example.org:9600"),
    ]:
        code, said = run("init", *words, "--state", str(state))
        assert (code, f"sites join at {enrolment} and then reach {server}" in said) == (0, True), said
    config = load_config(None, {"state": state}, chosen)
    assert (config.listen, config.enrol_listen, config.advertise) == ("0.0.0.0:9600", "", ["other.example.org"])


def test_init_that_is_told_nothing_keeps_what_a_server_was_told(tmp_path: Path) -> None:
    state = State(tmp_path)
    keep_advertised(state, Advertised("fl.example.org:1", "fl.example.org:2"))
    state.close()
    assert "sites join at fl.example.org:2 and then reach fl.example.org:1" in run("init", "--state", str(tmp_path))[1]


@pytest.mark.parametrize("listen", ["8443", "0.0.0.0:0"])
def test_init_refuses_what_is_no_address_or_no_port(tmp_path: Path, listen: str) -> None:
    code, said = run("init", "--listen", listen, "--state", str(tmp_path))
    assert (code, "give one" in said or "is no address" in said) == (ExitCode.BAD_CONFIGURATION, True)


def test_invitation_without_a_server_holds_all_that_a_site_needs(state: Path) -> None:
    code, said = run("invite", "site-a", "--valid-hours", "24", "--state", str(state))
    assert code == 0
    token = JoinToken.decode(re.findall(r"fsj1_\S+", said)[0])
    assert (token.name, token.server, token.enrolment) == ("site-a", "fl.example.org:9443", "fl.example.org:9444")
    assert token.fingerprint == fingerprint((state / "server.crt").read_bytes())
    assert "fedclient join fl.example.org:9443 --token fsj1_" in said


def test_invitation_says_whether_it_takes_an_earlier_one_back(state: Path) -> None:
    words = "The earlier token of site-a, which was not used, is taken back.\n"
    said = [run("invite", name, "--state", str(state)) for name in ("site-a", "site-b", "site-a", "site-a")]
    assert [words in output for _, output in said] == [False, False, True, True]
    run("revoke", "site-a", "--state", str(state))
    assert words not in run("invite", "site-a", "--state", str(state))[1]


def test_sites_are_listed_and_revoked_without_a_server(state: Path) -> None:
    assert run("invite", "site-a", "--state", str(state))[0] == 0
    assert ["site-a", "invited"] in [row.split()[:2] for row in run("clients", "--state", str(state))[1].splitlines()]
    assert run("revoke", "site-a", "--state", str(state)) == (
        0,
        "site-a is revoked: 0 certificates, 1 open invitations\n",
    )
    assert ["site-a", "revoked"] in [row.split()[:2] for row in run("clients", "--state", str(state))[1].splitlines()]


@pytest.mark.parametrize("command", ["invite", "revoke", "clients"])
def test_command_on_what_is_no_state_directory_says_so(tmp_path: Path, command: str) -> None:
    code, said = run(command, *(() if command == "clients" else ("site-a",)), "--state", str(tmp_path / "none"))
    assert code == ExitCode.BAD_STATE
    assert "is no state directory of a server" in said
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no name",), "'no name' is no name for a site: a name has 1 to 64"),
        (("a", "--valid-hours", "0"), "--valid-hours: give more than 0"),
    ],
)
def test_invitation_that_cannot_be_is_refused(state: Path, words: tuple[str, ...], message: str) -> None:
    code, said = run("invite", *words, "--state", str(state))
    assert (code, message in said) == (ExitCode.BAD_CONFIGURATION, True), said


@pytest.mark.parametrize("words", [("revoke", "nobody"), ("rounds", "--round", "99")])
def test_site_or_round_that_there_is_none_of_is_a_wrong_argument(state: Path, words: tuple[str, ...]) -> None:
    code, said = run(*words, "--state", str(state))
    assert (code, words[-1] in said) == (ExitCode.BAD_CONFIGURATION, True), said


def test_authority_that_was_changed_is_refused_with_what_to_do(state: Path) -> None:
    (state / "authority.key").write_bytes(b"")
    code, said = run("invite", "site-a", "--state", str(state))
    assert code == ExitCode.BAD_STATE
    assert (
        "authority.key is not what it was; restore a backup, or remove authority.key, authority.crt, server.key" in said
    )


def test_server_certificate_that_was_removed_is_made_anew_by_the_same_authority(state: Path) -> None:
    before = (state / "server.crt").read_bytes()
    for name in ("server.key", "server.crt"):
        (state / name).unlink()
    opened = State(state)
    assert opened.identity([]).certificate != before
    opened.close()
    assert run("invite", "site-a", "--state", str(state))[0] == 0


def test_lasting_port_is_free_and_none_that_an_outgoing_connection_is_given() -> None:
    range_of_system = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first_given = int(range_of_system.read_text().split()[0]) if range_of_system.exists() else 32_768
    port = lasting_port()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
    assert 1024 < port < first_given
