"""Joining as a test needs it: invited and enrolled in 20 ms, once for each server and name, by real tokens.

Run by its path, it joins and then becomes the `fedclient` command: `joining.py ADMIN ENROLMENT NAME run OPTION...`. So
a client that shares no loop with the test can join a server that does. Nothing of `tests` is imported here.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
from filelock import FileLock, Timeout

from fedclient.calls import Patience
from fedclient.identity import IdentityFolder
from fedclient.join import join
from fedstream.join_token import JoinToken
from fedstream.v1 import admin_pb2, admin_pb2_grpc

QUICK = Patience(first_seconds=0.05, longest_seconds=0.2, give_up_after_seconds=30.0)


def identity_folder(admin_address: str, name: str) -> Path:
    """Where a test's site has its identity: beside the administration's socket, so that a second start finds it."""
    return Path(admin_address.removeprefix("unix:")).parent / "identities" / name


async def invited(admin_address: str, name: str, valid_seconds: int = 0) -> JoinToken:
    """A new invitation."""
    request = admin_pb2.InviteRequest(client_name=name)
    if valid_seconds:
        request.valid_for.FromSeconds(valid_seconds)
    async with grpc.aio.insecure_channel(admin_address) as channel:
        answer = await admin_pb2_grpc.AdminServiceStub(channel).Invite(request, timeout=30.0)
    return JoinToken.decode(answer.token)


async def joined(admin_address: str, enrolment: str, name: str) -> IdentityFolder:
    """The identity of a site of that name, which has joined now or before."""
    folder = IdentityFolder(identity_folder(admin_address, name))
    folder.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.folder / "lock", timeout=0, thread_local=False)
    while True:  # by polling: whoever has the lock may wait for a server in this very loop
        try:
            lock.acquire()
            break
        except Timeout:
            await asyncio.sleep(0.02)
    try:
        if folder.membership() is None:
            token = await invited(admin_address, name)
            await join(token, token.server, enrolment, folder, QUICK)
        return folder
    finally:
        lock.release()


def main() -> None:
    """Join, and become the command."""
    _, admin_address, enrolment, name, *command = sys.argv
    asyncio.run(joined(admin_address, enrolment, name))
    from fedclient.cli import main as fedclient

    sys.argv = ["fedclient", *command]
    fedclient()


if __name__ == "__main__":
    main()
