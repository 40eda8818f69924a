/// Bounds on what is taken from the network, as the contract states them. Sizes in bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fedstream::client::limits {

constexpr std::uint32_t kProtocol = 1;
constexpr int kMaxTensors = 65'536;
constexpr int kMaxTensorsPerPart = 1'000;
constexpr std::size_t kMaxPartBytes = 1 << 20;
constexpr int kMaxAxes = 32;
constexpr std::size_t kMaxNameBytes = 256;
constexpr std::uint64_t kMaxModelBytes = std::uint64_t{64} << 30;
constexpr std::uint64_t kDefaultChunkBytes = 1 << 20;
constexpr std::uint64_t kMaxChunkBytes = (4 << 20) - (64 << 10);
constexpr std::uint64_t kDefaultWindowBytes = 4 << 20;
constexpr int kMaxMetadataBytes = 16'384;
constexpr std::size_t kMaxReasonBytes = 1'024;

/// Whether `name` may name a tensor.
bool is_tensor_name(std::string_view name);

/// Whether `name` may name a client.
bool is_client_name(std::string_view name);

/// `text` as one line of at most 1,024 bytes, without cutting a character in two.
std::string clip_reason(std::string text);

}  // namespace fedstream::client::limits
