#include "limits.h"

#include <algorithm>
#include <cctype>

namespace fedstream::client::limits {
namespace {

/// The length of the control character of UTF-8 that begins at `at`, or 0; it would break a line of a description.
std::size_t control_at(std::string_view text, std::size_t at) {
  const auto byte = static_cast<unsigned char>(text[at]);
  if (byte < 0x20 || byte == 0x7f) return 1;
  const bool has_next = at + 1 < text.size();
  return byte == 0xc2 && has_next && static_cast<unsigned char>(text[at + 1]) < 0xa0 ? 2 : 0;
}

}  // namespace

bool is_tensor_name(std::string_view name) {
  for (std::size_t at = 0; at < name.size(); ++at) {
    if (control_at(name, at) != 0) return false;
  }
  return !name.empty() && name.size() <= kMaxNameBytes && name != "__metadata__";
}

bool is_client_name(std::string_view name) {
  const auto is_plain = [](unsigned char c) { return c < 0x80 && std::isalnum(c) != 0; };
  const auto is_allowed = [&](unsigned char c) { return is_plain(c) || c == '.' || c == '_' || c == '-'; };
  return !name.empty() && name.size() <= 64 && is_plain(static_cast<unsigned char>(name[0])) &&
         std::all_of(name.begin(), name.end(), is_allowed);
}

std::string clip_reason(std::string text) {
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (const auto length = control_at(text, at); length != 0) text.replace(at, length, " ");
  }
  if (text.size() <= kMaxReasonBytes) return text;
  std::size_t end = kMaxReasonBytes;
  while ((static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end);
}

}  // namespace fedstream::client::limits
