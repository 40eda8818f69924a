"""A preview shows all that is sent: every message of the contract, every field, as the client itself makes them."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from PIL import Image

import fedstream.v1
from fedclient.config import ClientConfig
from fedclient.preview.contract import Kind, content, fields_of, kinds
from fedclient.preview.messages import Facts, sample_messages, travelling
from fedclient.preview.show import NEVER, as_json, as_lines
from fedclient.reply import Experience
from fedclient.training import Site
from fedstream.v1 import negotiation_pb2
from fedtask.linear import Linear
from fedtask.messages import TaskDescription
from fedtask.task import SiteOptions
from tests.support.scripted import Talk, scripted

pytestmark = pytest.mark.numpy_task

AT_THE_SERVER = {"AdminService"}
"""Services that no site calls."""


def facts(folder: Path, metrics: tuple[str, ...] = ("loss", "val_accuracy"), **settings: Any) -> Facts:
    task = Linear({"tensors": "2", "frozen_tensors": "1"})
    given = {"server": "127.0.0.1:1", "plaintext": True, "name": "site", "data": folder, "state_dir": folder / "state"}
    description = TaskDescription(task.meaning(), task.schema().tensors, task.default_plan())
    site = Site(description, task.open_site(SiteOptions(None, max_examples=settings.get("max_examples", 0))))
    return Facts(ClientConfig.model_validate({**given, **settings}), site, Experience(12.5), metrics)


def field_paths(message: Message) -> dict[str, str | None]:
    return {field.path: field.value for field in fields_of(message)}


def test_kinds_are_all_that_the_contract_lets_a_site_send() -> None:
    modules = [
        importlib.import_module(f"fedstream.v1.{one.name}") for one in pkgutil.iter_modules(fedstream.v1.__path__)
    ]
    services = [
        service
        for module in modules
        if module.__name__.endswith("_pb2")
        for service in module.DESCRIPTOR.services_by_name.values()
        if service.name not in AT_THE_SERVER
    ]
    calls = {method.name for service in services for method in service.methods}

    assert {kind.call for kind in kinds()} == calls
    negotiated = [field.name for field in negotiation_pb2.NegotiateRequest.DESCRIPTOR.oneofs_by_name["kind"].fields]
    assert [kind.kind for kind in kinds() if kind.call == "Negotiate"] == negotiated


def test_every_kind_has_an_example_that_is_of_it(tmp_path: Path) -> None:
    messages = sample_messages(facts(tmp_path))

    assert sorted(messages) == sorted(kinds())
    assert [kind for kind, one in messages.items() if kind.kind and one.WhichOneof("kind") != kind.kind] == []


def test_a_field_that_the_contract_gets_is_shown_without_a_change_here(tmp_path: Path) -> None:
    pool = descriptor_pool.DescriptorPool()
    hello = sample_messages(facts(tmp_path))[Kind("Negotiate", "hello")].hello  # type: ignore[attr-defined]
    for file in _with_dependencies(negotiation_pb2.DESCRIPTOR):
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        for message in proto.message_type:
            if message.name == "Hello":
                message.field.add(name="diagnosis", number=99, type=9, label=1)
        pool.Add(proto)
    later = message_factory.GetMessageClass(pool.FindMessageTypeByName("fedstream.v1.Hello"))
    message = later.FromString(hello.SerializeToString())

    assert field_paths(message) == {**field_paths(hello), "diagnosis": None}
    message.diagnosis = "tumour"  # type: ignore[attr-defined]
    assert field_paths(message)["diagnosis"] == "tumour"


def _with_dependencies(file: Any) -> list[Any]:
    found = [each for needed in file.dependencies for each in _with_dependencies(needed)]
    return list({one.name: one for one in [*found, file]}.values())


def test_lines_name_every_field_of_every_message_and_what_is_never_sent(tmp_path: Path) -> None:
    known = facts(tmp_path)
    messages = sample_messages(known)
    lines = list(as_lines(known, messages, "linear"))
    text = "\n".join(lines)
    blocks = {block.splitlines()[0].partition("   (")[0]: block for block in text.split("\n\n")}

    for kind in kinds():
        block = blocks[f"{kind.call} {kind.kind}".strip()]
        shown = [line.split()[0] for line in block.splitlines()[1:]]
        assert shown == list(field_paths(content(kind, messages[kind])))
    assert [one for one in NEVER if f"  - {one}" not in lines] == []
    assert "  num_examples = 170" in text
    assert "  epoch_duration.seconds = 12" in text


def test_tensors_of_an_update_are_those_that_training_changes(tmp_path: Path) -> None:
    known = facts(tmp_path)
    shown = as_json(known, sample_messages(known), "linear")["tensors"]

    names = ["weights", "bias", "further_00000", "further_00001"]
    assert (
        [tensor["name"] for tensor in shown]
        == [spec.name for spec in travelling(known.site.description.schema)]
        == names
    )
    assert shown[2] == {"name": "further_00000", "dtype": "float32", "shape": (16384,), "size_bytes": 65536}


@pytest.mark.parametrize(
    ("report", "names"), [("all", ["loss", "val_accuracy"]), ("none", []), ("val_accuracy,auc", ["val_accuracy"])]
)
def test_metrics_are_those_that_the_site_allows(tmp_path: Path, report: str, names: list[str]) -> None:
    messages = sample_messages(facts(tmp_path, report=report))
    progress = messages[Kind("Negotiate", "progress")].progress  # type: ignore[attr-defined]
    header = messages[Kind("PutManifest", "header")].header  # type: ignore[attr-defined]

    assert [metric.name for metric in progress.metrics] == names
    assert [metric.name for metric in header.metrics] == names


@pytest.mark.parametrize(
    ("limits", "reply"), [({}, "accept"), ({"max_epochs": 1}, "counter_offer"), ({"max_hours": 0.001}, "decline")]
)
def test_reply_is_the_one_that_the_limits_give(tmp_path: Path, limits: dict[str, float], reply: str) -> None:
    known = facts(tmp_path, **limits)

    assert as_json(known, sample_messages(known), "linear")["reply"] == reply


def test_no_message_holds_a_path_or_a_file_name(tmp_path: Path) -> None:
    folder = tmp_path / "ward-7"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "john-doe.png")
    sent = b"".join(message.SerializeToString() for message in sample_messages(facts(folder)).values())

    assert [word for word in ("ward-7", "john-doe", str(tmp_path), "state") if word.encode() in sent] == []


async def test_hello_is_the_one_that_a_client_sends(tmp_path: Path) -> None:
    heard: list[negotiation_pb2.Hello] = []

    async def script(talk: Talk) -> None:
        heard.append(await talk.hear("hello"))
        await talk.say(declined=negotiation_pb2.Declined(message="enough"))

    async with scripted(script, settings={"tensors": "2", "frozen_tensors": "1"}) as server:
        limits = {"max_epochs": 3, "max_hours": 2, "max_examples": 20}
        with pytest.raises(Exception, match="enough"):
            await server.client(tmp_path, **limits).run()

    known = facts(tmp_path, **limits)
    expected = sample_messages(Facts(known.config, known.site, Experience(), ()))[Kind("Negotiate", "hello")]
    assert heard == [expected.hello]  # type: ignore[attr-defined]


async def test_update_brings_the_tensors_and_the_facts_that_the_preview_names(tmp_path: Path) -> None:
    settings = {"tensors": "2", "frozen_tensors": "1"}

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await talk.agree(server.base)
        async with asyncio.timeout(20):
            while not any(upload.finished for upload in server.transfer.uploads.values()):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        await talk.end(server.base)

    async with scripted(script, settings=settings) as server:
        await server.client(tmp_path, report="loss").run()

    known = facts(tmp_path, report="loss")
    upload = server.transfer.uploads["upload-1"]
    sent = [upload.manifest.entries[index].name for index in upload.missing]
    assert sent == [spec.name for spec in travelling(known.site.description.schema)]
    shown = field_paths(sample_messages(known)[Kind("PutManifest", "header")].header)  # type: ignore[attr-defined]
    real = field_paths(upload.header)
    assert list(real) == list(shown)
    assert (real["num_examples"], real["num_tensors"]) == (shown["num_examples"], shown["num_tensors"])
    assert [metric.name for metric in upload.header.metrics] == ["loss"]
