#include "digest.h"

#include <openssl/evp.h>

#include <array>
#include <stdexcept>

namespace fedstream::client {

Sha256::Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
  if (EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) != 1) throw std::runtime_error("there is no SHA-256");
}

void Sha256::add(std::string_view data) { EVP_DigestUpdate(context_.get(), data.data(), data.size()); }

std::string Sha256::finish() {
  std::string digest(32, '\0');
  EVP_DigestFinal_ex(context_.get(), reinterpret_cast<unsigned char*>(digest.data()), nullptr);
  return digest;
}

std::string sha256(std::string_view data) {
  Sha256 digest;
  digest.add(data);
  return digest.finish();
}

std::string hex(std::string_view data) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : data) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::uint32_t crc32c(std::string_view data) {
  static const auto kTable = [] {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t index = 0; index < 256; ++index) {
      table[index] = index;
      for (int bit = 0; bit < 8; ++bit) table[index] = (table[index] >> 1) ^ ((table[index] & 1) != 0 ? 0x82f63b78 : 0);
    }
    return table;
  }();
  std::uint32_t crc = 0xffffffff;
  for (const unsigned char byte : data) crc = kTable[(crc ^ byte) & 0xff] ^ (crc >> 8);
  return crc ^ 0xffffffff;
}

}  // namespace fedstream::client
