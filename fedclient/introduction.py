"""What a client says of itself when it joins."""

from __future__ import annotations

from importlib import metadata

from fedclient import codec
from fedclient.config import ClientConfig
from fedclient.reply import Experience
from fedclient.training import Site
from fedstream.v1 import negotiation_pb2


def introduce(config: ClientConfig, site: Site, experience: Experience) -> negotiation_pb2.NegotiateRequest:
    """The hello of this site, as it is now."""
    return codec.write_hello(
        name=config.name,
        schema=site.description.schema,
        meaning=site.description.meaning,
        num_examples=site.summary.num_examples,
        site_limits=config.site_limits,
        epoch_seconds=experience.epoch_seconds,
        software=f"fedstream {metadata.version('fedstream')}",
        synthetic_data=site.summary.synthetic,
    )
