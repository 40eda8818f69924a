"""What both ends of a federation share: the contract's stubs and the rules that surround them. Where to look for what:

The contract
- `v1`: stubs generated from `protos/`.
- `wire`: messages to and from the types below.
- `errors`, `status`: what can go wrong between two ends, and its form on the wire.
- `limits`: bounds on what is taken from the network.
- `outcomes`, `plan`, `progress`: how offers end, what a fine-tune is told, how far it is.
- `scores`: which of two models is the better one.

Weights
- `schema`, `dtypes`: a model without its values.
- `manifest`: a model's table of contents, and digests.
- `body`, `chunk_messages`: a body cut into chunks, and chunks without protobuf's copies.
- `encodings`, `zstd_frame`: how tensors of an update may travel.
- `weights_file`: weights on disk.

Security
- `tls`, `certificates`: trust, and the certificates of a federation.
- `join_token`: the line of text with which a site joins.

What both commands need
- `command_line`, `settings`, `logs`, `output`, `signals`, `sizes`: options, settings, logs and words for people.
- `checkup`: checks that a person asks for, as `doctor` runs them.
- `files`, `room`: durable writes, and waiting for space.
- `waiting`, `heap`: waiting for an event, and memory that was freed.
"""
