/// Getting a model: its manifest, then the tensors that are not on disk yet, resumed where the bytes on disk end.
#pragma once

#include "backoff.h"
#include "site.h"

namespace fedstream::client {

/// Bring the model of that digest into the store; returns its manifest.
/// @throws Cancelled, Refusal, Trouble (when the patience ends), std::runtime_error (it arrives damaged again and
/// again)
Manifest fetch_model(Site& site, const std::string& sha256, std::uint64_t max_chunk_bytes, const Patience& patience,
                     const OnBytes& on_bytes, const Cancel& cancel);

}  // namespace fedstream::client
