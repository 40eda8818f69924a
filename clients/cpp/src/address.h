/// Addresses: `HOST:PORT` or `[V6ADDRESS]:PORT`.
#pragma once

#include <string>

namespace fedstream::client {

struct Address {
  std::string host;
  int port;
};

/// @throws std::runtime_error it is none
Address split_address(const std::string& text);

std::string shown_address(const Address& address);

}  // namespace fedstream::client
