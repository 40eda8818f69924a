/// A model as a `.safetensors` file: eight bytes of header length, a header in JSON, and the tensors' bytes.
#pragma once

#include "store.h"

namespace fedstream::client {

/// The header, with its length before it.
std::string safetensors_header(const Manifest& manifest);

/// Write a model whose tensors are in the store, durably; it may be larger than the memory.
void write_safetensors(const fs::path& file, const Manifest& manifest, const Store& store);

}  // namespace fedstream::client
