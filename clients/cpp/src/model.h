/// Schemas, manifests, meanings and chunks: canonical descriptions, digests, parts, and the rules for what comes in.
/// The contract's messages are this client's values, so that nothing is copied to and fro.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fedstream/v1/negotiation.pb.h"
#include "fedstream/v1/transfer.pb.h"

namespace fedstream::client {

using Spec = v1::TensorSpec;
using Entry = v1::TensorEntry;
using Schema = std::vector<Spec>;
using Manifest = std::vector<Entry>;

/// The canonical name of an element type, such as `F32`; empty if it is not known.
std::string element_name(v1::DataType type);

/// The canonical description of a schema (R-SCH-2), and that of a meaning.
std::string canonical_schema(const Schema& schema);
std::string canonical_meaning(const v1::TaskMeaning& meaning);

/// The meaning of which `text` is the canonical description.
/// @throws std::runtime_error it is none
v1::TaskMeaning parse_meaning(const std::string& text);

/// The digest that names a model (R-MOD-1), and the text that it is of.
std::string canonical_model(const Manifest& manifest);
v1::Digest model_digest(const Manifest& manifest);

/// The entry of a tensor with these raw values.
Entry entry_of(const Spec& spec, std::string_view values);

/// Bytes of the tensors' values.
std::uint64_t size_of(const Manifest& manifest);

/// @throws Trouble an entry of a manifest from the network breaks a rule (R-SCH-3, R-SCH-4, R-MOD-3, R-MOD-4)
void check_entry(const Entry& entry);

/// @throws Trouble the manifest is not of that model or schema (R-DL-1)
void check_manifest(const Manifest& manifest, const Schema& schema, const std::string& sha256);

/// A schema and a manifest in parts within the bounds of the contract; one at least.
std::vector<v1::SchemaPart> schema_parts(const Schema& schema);
std::vector<v1::ManifestPart> manifest_parts(const Manifest& manifest);

v1::Chunk make_chunk(std::uint64_t offset, std::string data);

/// What is new in a chunk for a receiver that has `have` of `body` bytes, by R-CH-1 to R-CH-5.
/// @throws Trouble it breaks one of them
std::string_view new_in_chunk(const v1::Chunk& chunk, std::uint64_t have, std::uint64_t body, std::uint64_t max_bytes);

}  // namespace fedstream::client
