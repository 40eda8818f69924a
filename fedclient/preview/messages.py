"""One message of each kind, made by the code that makes those that are sent.

What is known before anything is agreed is as it would be sent: the hello, the reply to the task's own plan, the tensors
of the update. Identifiers, times and metrics' values are examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from fedclient import codec, requests
from fedclient.config import ClientConfig
from fedclient.events import Offer
from fedclient.introduction import introduce
from fedclient.preview.contract import Kind
from fedclient.reply import Accept, Counter, Decline, Experience, answer
from fedclient.reporting import Reporting
from fedclient.training import Site
from fedstream.body import make_chunk
from fedstream.certificates import make_key
from fedstream.join_token import JoinToken
from fedstream.manifest import Digest, Manifest, ModelRef, TensorEntry
from fedstream.progress import Phase, Progress
from fedstream.schema import ModelSchema, TensorSpec
from fedstream.v1 import negotiation_pb2, transfer_pb2
from fedtask.messages import LocalUpdate

_OFFER, _UPLOAD = "an-offer-id", "an-upload-id"
_HOST = "fl.example.org:8443"
_ROUND_SECONDS = 3600.0
_CHUNK_BYTES = 2**20
_NO_DIGEST = bytes(32)
"""In place of a digest of values that nobody has yet."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a preview is made from. `metrics` are names that the task has reported here before."""

    config: ClientConfig
    site: Site
    experience: Experience
    metrics: Sequence[str]


def sample_messages(facts: Facts) -> dict[Kind, Message]:
    """A message of each kind."""
    return {**_enrolment(facts), **_negotiation(facts), **_transfer(facts)}


def travelling(schema: ModelSchema) -> list[TensorSpec]:
    """The tensors whose values an update brings: those that training changes."""
    return [spec for spec in schema if spec.trainable]


def _enrolment(facts: Facts) -> dict[Kind, Message]:
    """With a key that is made for it and thrown away: its public half is all that is sent."""
    token = JoinToken(b"8 bytes.", b"16 secret bytes.", f"sha256:{_NO_DIGEST.hex()}", facts.config.name, _HOST, _HOST)
    return {
        Kind("Enrol"): requests.enrol(token, make_key()),
        Kind("RenewCertificate"): requests.renew_certificate(),
    }


def _negotiation(facts: Facts) -> dict[Kind, Message]:
    schema, reporting = facts.site.description.schema, facts.config.reporting
    progress = Progress(Phase.TRAINING, 1, 10, 0.5, reporting.filtered(_example_metrics(facts)))
    longer = Counter(facts.config.max_epochs or 1, _ROUND_SECONDS, "10 epochs take about 4000 s here")
    given = {
        "hello": introduce(facts.config, facts.site, facts.experience),
        "schema_part": codec.write_schema(schema)[0],
        "accept": codec.write_reply(_OFFER, Accept()),
        "decline": codec.write_reply(_OFFER, Decline("one epoch takes longer than this site allows")),
        "counter_offer": codec.write_reply(_OFFER, longer),
        "progress": codec.write_progress(_OFFER, progress),
        "failure": codec.write_failure(_OFFER, "local training failed"),
        "leave": codec.write_leave("stopped by its operator"),
    }
    real = reply_to_default_plan(facts)
    given[real.WhichOneof("kind") or ""] = real
    negotiation: dict[Kind, Message] = {Kind("Negotiate", name): message for name, message in given.items()}
    return {Kind("DescribeTask"): requests.describe_task(), **negotiation}


def reply_to_default_plan(facts: Facts) -> negotiation_pb2.NegotiateRequest:
    """What would be answered to an offer of the task's own plan with an hour for it."""
    plan = facts.site.description.default_plan
    offer = Offer(_OFFER, _UPLOAD, 1, ModelRef(0, Digest(_NO_DIGEST, 0)), plan, _ROUND_SECONDS, 60.0)
    return codec.write_reply(_OFFER, answer(offer, facts.config.site_limits, facts.experience))


def _transfer(facts: Facts) -> dict[Kind, Message]:
    header, *parts = requests.put_manifest(_parcel(facts, facts.config.reporting))
    chunk = requests.write_chunk(_UPLOAD, make_chunk(_CHUNK_BYTES, b"values of tensors"))
    model = Digest(_NO_DIGEST, 0)
    return {
        Kind("PutManifest", "header"): header,
        Kind("PutManifest", "part"): parts[0],
        Kind("WriteChunks"): transfer_pb2.WriteChunksRequest.FromString(chunk),
        Kind("GetUploadStatus"): requests.get_upload_status(_UPLOAD),
        Kind("FinishUpload"): requests.finish_upload(_UPLOAD),
        Kind("GetManifest"): requests.get_manifest(model),
        Kind("ReadChunks"): requests.read_chunks(model, range(3), _CHUNK_BYTES, _CHUNK_BYTES),
    }


def _parcel(facts: Facts, reporting: Reporting) -> requests.Parcel:
    num_examples = facts.site.summary.num_examples
    entries = [
        TensorEntry(spec.name, spec.dtype, spec.shape, Digest(_NO_DIGEST, spec.size_bytes))
        for spec in facts.site.description.schema
    ]
    update = LocalUpdate((), num_examples, _example_metrics(facts), (), 10, 600.0)
    return requests.parcel_of(_UPLOAD, update, Manifest(tuple(entries)), {}, {}, reporting)


def _example_metrics(facts: Facts) -> Mapping[str, float | None]:
    """Names as the task reported them in earlier rounds, or, before the first, those that the site would let leave."""
    names = facts.metrics or sorted(facts.config.reporting.names or ("loss", "accuracy"))
    return dict.fromkeys(names, 0.5)
