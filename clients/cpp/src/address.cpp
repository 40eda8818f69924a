#include "address.h"

#include <stdexcept>

namespace fedstream::client {

Address split_address(const std::string& text) {
  const auto colon = text.rfind(':');
  std::string host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  const auto digits = colon == std::string::npos ? "" : text.substr(colon + 1);
  const bool is_number =
      !digits.empty() && digits.size() <= 5 && digits.find_first_not_of("0123456789") == std::string::npos;
  if (host.empty() || !is_number || std::stoi(digits) > 65'535) {
    throw std::runtime_error("'" + text + "' is no address; write HOST:PORT, such as fl.example.org:8443");
  }
  return {host, std::stoi(digits)};
}

std::string shown_address(const Address& address) {
  const bool is_v6 = address.host.find(':') != std::string::npos;
  return (is_v6 ? "[" + address.host + "]" : address.host) + ":" + std::to_string(address.port);
}

}  // namespace fedstream::client
