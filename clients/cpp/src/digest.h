/// SHA-256, CRC-32C and hexadecimal digits.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

struct evp_md_ctx_st;

namespace fedstream::client {

/// SHA-256 of bytes that come piece by piece.
class Sha256 {
 public:
  Sha256();
  void add(std::string_view data);
  /// The 32 bytes; to be called once.
  std::string finish();

 private:
  std::unique_ptr<evp_md_ctx_st, void (*)(evp_md_ctx_st*)> context_;
};

/// The 32 bytes of the SHA-256 of `data`.
std::string sha256(std::string_view data);

/// Lower-case hexadecimal digits.
std::string hex(std::string_view data);

/// CRC-32C (Castagnoli), which neither zlib nor OpenSSL has.
std::uint32_t crc32c(std::string_view data);

}  // namespace fedstream::client
