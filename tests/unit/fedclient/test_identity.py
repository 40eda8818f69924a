"""A site's identity on its disk, and what joining needs of it. 2 s."""

from __future__ import annotations

import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from fedclient.calls import Patience
from fedclient.config import default_state_folder, load_config
from fedclient.exit_codes import ExitCode, Stop
from fedclient.identity import IdentityFolder, Membership, check_answer, read_credentials
from fedclient.join import join, places
from fedclient.trust import Certified, Pinned, Plain, trust_of
from fedstream.certificates import issue_site, key_sha256, make_authority, make_key, make_request, read_request
from fedstream.join_token import JoinToken

pytestmark = pytest.mark.numpy_task

AUTHORITY = make_authority()
TOKEN = JoinToken(bytes(8), bytes(16), "sha256:" + "00" * 32, "alpha", "fl.example.org:8443", "fl.example.org:8444")


def certificate_for(key: bytes, name: str = "alpha", validity: timedelta = timedelta(days=90)) -> bytes:
    return issue_site(AUTHORITY, name, read_request(make_request(key, name)).public_key, validity)


@pytest.fixture
def folder(tmp_path: Path) -> IdentityFolder:
    """Of a site that has joined."""
    made = IdentityFolder(tmp_path / "identity")
    made.keep(Membership("alpha", "fl.example.org:8443"), certificate_for(made.key()), AUTHORITY.certificate)
    return made


def test_key_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    folder = IdentityFolder(tmp_path / "a" / "b")
    assert folder.membership() is None
    key = folder.key()
    assert folder.key() == key
    assert stat.S_IMODE((tmp_path / "a" / "b" / "site.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert folder.membership() is None


def test_identity_is_read_as_it_was_kept(folder: IdentityFolder) -> None:
    assert folder.membership() == Membership("alpha", "fl.example.org:8443")
    found = folder.credentials()
    assert (found.facts.name, found.authority) == ("alpha", AUTHORITY.certificate)
    assert found.facts.key_sha256 == key_sha256(found.identity.key)
    found.require_valid()


def test_run_takes_server_and_name_from_the_identity(folder: IdentityFolder) -> None:
    config = load_config(None, {"identity": folder.folder, "data": "phantom"})
    assert (config.server, config.name, config.identity) == ("fl.example.org:8443", "alpha", folder.folder)
    assert isinstance(trust_of(config), Certified)
    elsewhere = load_config(None, {"identity": folder.folder, "data": "phantom", "server": "10.0.0.1:1"})
    assert elsewhere.server == "10.0.0.1:1"


def test_run_finds_the_identity_in_its_usual_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = IdentityFolder(tmp_path / "fedstream" / "identity")
    made.keep(Membership("alpha", "a:1"), certificate_for(made.key()), AUTHORITY.certificate)
    assert load_config(None, {"data": "phantom"}).name == "alpha"
    assert isinstance(trust_of(load_config(None, {"data": "phantom", "server": "[::1]:1", "plaintext": True})), Plain)
    pinned = {"data": "phantom", "server": "b:1", "fingerprint": "sha256:" + "0" * 64}
    assert isinstance(trust_of(load_config(None, pinned)), Pinned)


def message_of(code: ExitCode, stop: pytest.ExceptionInfo[Stop]) -> str:
    assert stop.value.code is code
    return stop.value.message


def test_state_folder_stays_when_the_server_is_reached_by_another_address(
    folder: IdentityFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    joined, moved = (
        load_config(None, {"identity": folder.folder, "data": "phantom"} | server)
        for server in ({}, {"server": "new.example.org:443"})
    )
    assert (joined.server, moved.server) == ("fl.example.org:8443", "new.example.org:443")
    assert moved.state_folder == joined.state_folder == default_state_folder("fl.example.org:8443", "alpha")
    named = load_config(None, {"identity": folder.folder, "data": "phantom", "state_dir": "here"})
    assert named.state_folder == Path("here")


def test_state_folder_that_an_earlier_version_named_after_another_address_goes_on(
    folder: IdentityFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    former = default_state_folder("new.example.org:443", "alpha")
    former.mkdir(parents=True)
    settings = {"identity": folder.folder, "data": "phantom"}
    assert load_config(None, settings | {"server": "new.example.org:443"}).state_folder == former
    assert load_config(None, settings).state_folder == default_state_folder("fl.example.org:8443", "alpha")


def test_run_under_another_name_than_the_identity_is_refused(folder: IdentityFolder) -> None:
    with pytest.raises(Stop) as stop:
        load_config(None, {"identity": folder.folder, "data": "phantom", "name": "beta"})
    assert "is the identity of alpha; leave the name off" in message_of(ExitCode.BAD_CONFIGURATION, stop)


def test_run_with_a_folder_where_nothing_was_joined_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop) as stop:
        load_config(None, {"identity": tmp_path, "data": "phantom"})
    assert "run `fedclient join` first" in message_of(ExitCode.BAD_CONFIGURATION, stop)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "alpha"}', '{"name": "../up", "server": "a:1"}'])
def test_identity_that_is_damaged_is_named(folder: IdentityFolder, text: str) -> None:
    (folder.folder / "identity.json").write_text(text)
    with pytest.raises(Stop) as stop:
        folder.membership()
    assert "identity.json cannot be used" in message_of(ExitCode.BAD_CONFIGURATION, stop)


@pytest.mark.parametrize("name", ["site.key", "site.crt", "authority.crt"])
@pytest.mark.parametrize(
    ("contents", "why"), [(None, "No such file or directory"), (b"", "it is empty"), (b"noise", "it holds no ")]
)
def test_file_of_an_identity_that_cannot_be_used_is_named_and_what_to_do(
    folder: IdentityFolder, name: str, contents: bytes | None, why: str
) -> None:
    path = folder.folder / name
    path.unlink() if contents is None else path.write_bytes(contents)
    with pytest.raises(Stop) as stop:
        folder.credentials()
    told = message_of(ExitCode.BAD_CONFIGURATION, stop)
    assert told.startswith(f"{path} cannot be used: {why}")
    assert told.endswith(f". Remove {folder.folder}, and join again with a new invitation")


@pytest.mark.parametrize(
    ("contents", "why"), [(b"", "it is empty"), (b"noise", "it holds no private key of P-256 in PEM")]
)
async def test_join_with_a_damaged_key_names_it_and_what_to_do(tmp_path: Path, contents: bytes, why: str) -> None:
    folder = IdentityFolder(tmp_path)
    (tmp_path / "site.key").write_bytes(contents)
    with pytest.raises(Stop) as stop:
        await join(TOKEN, TOKEN.server, TOKEN.enrolment, folder)
    told = f"{tmp_path / 'site.key'} cannot be used: {why}. Remove {tmp_path}, and join again with a new invitation"
    assert message_of(ExitCode.BAD_CONFIGURATION, stop) == told


def test_key_of_ones_own_that_is_encrypted_is_told(tmp_path: Path) -> None:
    plain = serialization.load_pem_private_key(make_key(), password=None)
    locked = serialization.BestAvailableEncryption(b"secret")
    own = plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (tmp_path / "k").write_bytes(own)
    with pytest.raises(Stop, match=r"k cannot be used: its key is encrypted; only one without a password can be used$"):
        read_credentials(tmp_path / "k", tmp_path / "c", tmp_path / "a")


def test_certificate_of_another_key_is_refused(folder: IdentityFolder) -> None:
    folder.keep_certificate(certificate_for(make_key()))
    with pytest.raises(Stop, match=r"site\.crt is not the certificate of the key"):
        folder.credentials()


@pytest.mark.parametrize("name", ["site.crt", "authority.crt"])
def test_certificate_that_its_authority_did_not_sign_is_named(folder: IdentityFolder, name: str) -> None:
    other = make_authority()
    key = folder.key()
    public_key = read_request(make_request(key, "alpha")).public_key
    certificates = {
        "site.crt": issue_site(other, "alpha", public_key, timedelta(days=1)),
        "authority.crt": other.certificate,
    }
    (folder.folder / name).write_bytes(certificates[name])
    with pytest.raises(Stop) as stop:
        folder.credentials()
    assert "one of them is damaged" in message_of(ExitCode.BAD_CONFIGURATION, stop)


def test_certificate_that_has_expired_is_told_before_the_server_hangs_up(folder: IdentityFolder) -> None:
    folder.keep_certificate(certificate_for(folder.key(), validity=timedelta(minutes=-1)))
    with pytest.raises(Stop) as stop:
        folder.credentials().require_valid()
    told = message_of(ExitCode.UNTRUSTED, stop)
    assert f"this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:}" in told
    assert "set this machine's clock, or, if it is right, ask the coordinator for a new invitation" in told


def test_own_files_name_the_site(tmp_path: Path) -> None:
    key = make_key()
    for name, contents in (("k", key), ("c", certificate_for(key, "hospital")), ("a", AUTHORITY.certificate)):
        (tmp_path / name).write_bytes(contents)
    files = {"key": tmp_path / "k", "certificate": tmp_path / "c", "server_ca": tmp_path / "a"}
    assert load_config(None, {**files, "server": "a:1", "data": "phantom"}).name == "hospital"
    assert read_credentials(files["key"], files["certificate"], files["server_ca"]).facts.name == "hospital"


def test_answer_that_was_not_asked_for_is_refused() -> None:
    key = make_key()
    check_answer("alpha", key, certificate_for(key), AUTHORITY.certificate)
    wrong = [
        (certificate_for(make_key()), AUTHORITY.certificate),
        (certificate_for(key, "beta"), AUTHORITY.certificate),
        (certificate_for(key), make_authority().certificate),
    ]
    for certificate, authority in wrong:
        with pytest.raises(ValueError, match="not the one that was asked for"):
            check_answer("alpha", key, certificate, authority)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((None, None), ("fl.example.org:8443", "fl.example.org:8444")),
        (("10.0.0.1:9", None), ("10.0.0.1:9", "10.0.0.1:8444")),
        ((None, "10.0.0.1:9"), ("fl.example.org:8443", "10.0.0.1:9")),
        (("[::1]:1", "[::1]:2"), ("[::1]:1", "[::1]:2")),
    ],
)
def test_operator_may_say_where_the_server_is(given: tuple[str | None, str | None], found: tuple[str, str]) -> None:
    assert places(TOKEN, *given) == found


def test_address_that_is_none_is_refused() -> None:
    with pytest.raises(Stop, match="is no address"):
        places(TOKEN, "here", None)


async def test_join_where_nobody_answers_says_that_nothing_is_lost_and_keeps_the_key(tmp_path: Path) -> None:
    folder, impatient = IdentityFolder(tmp_path / "identity"), Patience(0.01, 0.02, 0.1)
    for _ in range(2):
        with pytest.raises(Stop) as stop:
            await join(TOKEN, TOKEN.server, "127.0.0.1:1", folder, impatient)
        assert "Nothing is lost: try again with the same token" in message_of(ExitCode.UNREACHABLE, stop)
        assert f"The token says {TOKEN.enrolment}: --enrolment names another port" in stop.value.message
    assert [path.name for path in sorted(folder.folder.iterdir())] == ["site.key"]
    assert folder.membership() is None


async def test_join_that_cannot_keep_the_key_names_the_option_for_another_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = IdentityFolder(tmp_path / "file" / "identity")
    with pytest.raises(Stop) as stop:
        await join(TOKEN, TOKEN.server, "127.0.0.1:1", folder)
    why = f"the identity {folder.folder} cannot be kept ({folder.folder}: Not a directory)"
    advice = "Name a folder that this user may write to with --identity. Nothing was sent: the token still works"
    assert message_of(ExitCode.BAD_CONFIGURATION, stop) == f"{why}. {advice}"


@pytest.mark.parametrize("change", [{"name": "beta"}, {"server": "elsewhere.example.org:8443"}])
async def test_join_does_not_put_a_site_in_the_place_of_another(folder: IdentityFolder, change: dict[str, str]) -> None:
    token = replace(TOKEN, **change)
    before = {path: path.read_bytes() for path in folder.folder.iterdir()}
    with pytest.raises(Stop) as stop:
        await join(token, token.server, "127.0.0.1:1", folder, Patience(0.01, 0.02, 0.1))
    assert "is the identity of alpha at fl.example.org:8443" in message_of(ExitCode.BAD_CONFIGURATION, stop)
    assert {path: path.read_bytes() for path in folder.folder.iterdir()} == before


async def test_join_for_an_address_that_leads_nowhere_sends_nothing_and_keeps_nothing(tmp_path: Path) -> None:
    folder = IdentityFolder(tmp_path / "identity")
    with pytest.raises(Stop) as stop:
        await join(TOKEN, "127.0.0.1:1", "127.0.0.1:1", folder, Patience(0.01, 0.02, 0.1))
    said = message_of(ExitCode.UNREACHABLE, stop)
    assert said.startswith("127.0.0.1:1 does not answer (")
    assert f"the token says {TOKEN.server}. Nothing was sent" in said
    assert not folder.folder.exists()
