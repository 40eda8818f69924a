#include "identity.h"

#include <absl/strings/ascii.h>

#include <cstdlib>

#include "certificates.h"

namespace fedstream::client {
namespace {

std::string read_named(const fs::path& file) {
  try {
    return read_file(file);
  } catch (const fs::filesystem_error& error) {
    wrong(file.string() + " cannot be used: " + error.code().message());
  }
}

/// A fingerprint as this program writes it. People may have it in capitals, as other tools show it.
std::string read_fingerprint(const std::string& text) {
  const std::string kind = "sha256:", digits = text.substr(std::min(kind.size(), text.size()));
  const bool is_one = text.rfind(kind, 0) == 0 && digits.size() == 64 &&
                      digits.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
  if (!is_one) wrong("--fingerprint: write sha256: and 64 hexadecimal digits, as the server prints it");
  return kind + absl::AsciiStrToLower(digits);
}

}  // namespace

fs::path state_home() {
  if (const char* home = std::getenv("XDG_STATE_HOME"); home != nullptr && *home != '\0') return home;
  const char* home = std::getenv("HOME");
  return fs::path(home == nullptr ? "." : home) / ".local" / "state";
}

fs::path default_identity() { return state_home() / "fedstream" / "identity"; }

bool is_client_name(const std::string& name) {
  const auto is_plain = [](unsigned char c) { return c < 0x80 && std::isalnum(c) != 0; };
  return !name.empty() && name.size() <= 64 && is_plain(static_cast<unsigned char>(name[0])) &&
         std::all_of(name.begin(), name.end(), [&](char c) { return is_plain(c) || c == '.' || c == '_' || c == '-'; });
}

std::string host_of(const std::string& address) {
  const auto colon = address.rfind(':');
  std::string host = address.substr(0, colon), port = colon == std::string::npos ? "" : address.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  const bool is_number = !port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string::npos;
  if (host.empty() || !is_number || std::stoi(port) > 65'535) {
    wrong("'" + address + "' is no address; write HOST:PORT, such as fl.example.org:8443");
  }
  return host;
}

Access complete(Access access) {
  auto& [server, name, trust] = access;
  if (!trust.fingerprint.empty()) trust.fingerprint = read_fingerprint(trust.fingerprint);
  if (!trust.plaintext && trust.fingerprint.empty() && trust.server_ca.empty() && trust.identity.empty()) {
    trust.identity = default_identity();
  }
  if (!trust.identity.empty()) {
    const auto joined = membership_in(trust.identity);
    if (!joined) {
      wrong("nothing was joined in " + trust.identity.string() +
            ": join first with the coordinator's token, or say how to trust the server; see --help");
    }
    if (server.empty()) server = joined->server;
    if (name.empty()) name = joined->name;
  }
  if (server.empty() || name.empty()) wrong("add --server HOST:PORT and --name SITE");
  const auto host = host_of(server);
  const bool is_here = host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0;
  if (trust.plaintext && !is_here) wrong("--plaintext is for a server on this machine only");  // R-CON-1
  return access;
}

std::string joined_server(const Access& access) {
  const auto& identity = access.trust.identity;
  const auto joined = identity.empty() ? std::nullopt : membership_in(identity);
  return joined ? joined->server : access.server;
}

std::optional<Access> membership_in(const fs::path& folder) {
  const auto path = folder / "identity.json";
  if (!fs::exists(path)) return std::nullopt;
  const auto found = Json::parse(read_file(path), nullptr, false);
  if (!found.is_object() || !found.contains("server") || !found.contains("name")) {
    wrong(path.string() + " is damaged: join again, or give the right --identity");
  }
  return Access{found["server"], found["name"], {}};
}

std::optional<Credentials> credentials_of(const Trust& trust) {
  auto [plaintext, fingerprint, identity, certificate, key, authority] = trust;
  if (!identity.empty()) {
    certificate = identity / "site.crt";
    key = identity / "site.key";
    authority = identity / "authority.crt";
  }
  if (authority.empty()) return std::nullopt;
  if (certificate.empty()) return Credentials{"", "", read_named(authority)};
  const Credentials found{read_named(key), read_named(certificate), read_named(authority)};
  try {
    if (public_key(read_key(found.key).get()) != facts_of(found.certificate).key) {
      throw std::runtime_error("the certificate is not that of the key");
    }
    // The server would only hang up.
    if (!is_issued_by(found.certificate, found.authority))
      throw std::runtime_error("the certificate is none of the authority");
  } catch (const std::runtime_error& error) {
    wrong(key.string() + ", " + certificate.string() + " and " + authority.string() +
          " cannot be used: " + error.what());
  }
  return found;
}

void check_answer(const std::string& name, const Credentials& answered) {
  const auto facts = facts_of(answered.certificate);
  if (facts.name == name && facts.key == public_key(read_key(answered.key).get()) &&
      is_issued_by(answered.certificate, answered.authority))
    return;
  throw std::runtime_error("the certificate that came is not the one that was asked for");
}

}  // namespace fedstream::client
