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

std::string host_name() {
  char name[65] = "";
  gethostname(name, sizeof name - 1);
  for (char* c = name; *c != '\0'; ++c) {
    if (!is_client_name(std::string("a") + *c)) *c = '-';
  }
  return name;
}

/// Exactly one way, and what joining left if none is named.
Trust read_trust(const Words& words) {
  Trust trust{!words.get("--plaintext").empty(), words.get("--fingerprint"), words.get("--identity"),
              words.get("--certificate"),        words.get("--key"),         words.get("--server-ca")};
  const int ways = trust.plaintext + !trust.fingerprint.empty() + !trust.identity.empty() + !trust.server_ca.empty();
  if (ways > 1)
    wrong("give one of --identity, --server-ca (with --certificate and --key), --fingerprint and --plaintext");
  if (trust.certificate.empty() != trust.key.empty()) wrong("--certificate and --key come together");
  if (!trust.key.empty() && trust.server_ca.empty()) wrong("--certificate and --key come with --server-ca");
  auto& print = trust.fingerprint;
  if (!print.empty() && (print.size() != 71 || print.rfind("sha256:", 0) != 0 ||
                         print.find_first_not_of("0123456789abcdefABCDEF", 7) != std::string::npos)) {
    wrong("a fingerprint is sha256: and 64 hexadecimal digits, as in the join command that the server prints");
  }
  absl::AsciiStrToLower(&print);
  if (ways == 0) trust.identity = identity_folder(words);
  return trust;
}

}  // namespace

fs::path state_home() {
  if (const char* home = std::getenv("XDG_STATE_HOME"); home != nullptr && *home != '\0') return home;
  const char* home = std::getenv("HOME");
  return fs::path(home == nullptr ? "." : home) / ".local" / "state";
}

fs::path identity_folder(const Words& words) {
  return words.get("--identity", state_home() / "fedstream" / "identity");
}

bool is_client_name(const std::string& name) {
  const auto is_plain = [](unsigned char c) { return c < 0x80 && std::isalnum(c) != 0; };
  return !name.empty() && name.size() <= 64 && is_plain(static_cast<unsigned char>(name[0])) &&
         std::all_of(name.begin(), name.end(), [&](char c) { return is_plain(c) || c == '.' || c == '_' || c == '-'; });
}

std::pair<std::string, std::string> split_address(const std::string& text) {
  const auto colon = text.rfind(':');
  std::string host = text.substr(0, colon), port = colon == std::string::npos ? "" : text.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  const bool is_number = !port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string::npos;
  if (host.empty() || !is_number || std::stoi(port) > 65'535) {
    throw std::runtime_error("'" + text + "' is no address; write HOST:PORT, such as fl.example.org:8443");
  }
  return {host, port};
}

Access read_access(const Words& words) {
  Access access{words.get("--server"), words.get("--name"), read_trust(words)};
  if (const auto& folder = access.trust.identity; !folder.empty()) {
    const auto joined = membership_in(folder);
    if (!joined) {
      wrong("nothing was joined in " + folder.string() +
            ": join first with the coordinator's token, or say how to trust the server; see --help");
    }
    if (access.server.empty()) access.server = joined->server;
    if (access.name.empty()) access.name = joined->name;
  }
  if (access.server.empty()) wrong("add --server HOST:PORT, such as fl.example.org:8443");
  if (access.name.empty()) access.name = host_name();
  if (!is_client_name(access.name))
    wrong("a name has 1 to 64 characters of a-z A-Z 0-9 . _ -, a letter or digit first");
  std::string host;
  try {
    host = split_address(access.server).first;
  } catch (const std::runtime_error& error) {
    wrong(error.what());
  }
  const bool is_here = host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0;
  if (access.trust.plaintext && !is_here) wrong("--plaintext is for a server on this machine only");
  return access;
}

std::optional<Access> membership_in(const fs::path& folder) {
  const auto path = folder / "identity.json";
  if (!fs::exists(path)) return std::nullopt;
  try {
    google::protobuf::Struct found;
    if (!google::protobuf::util::JsonStringToMessage(read_file(path), &found).ok())
      throw std::runtime_error("it is damaged");
    const auto text = [&](const char* key) { return (*found.mutable_fields())[key].string_value(); };
    split_address(text("server"));
    if (!is_client_name(text("name"))) throw std::runtime_error("it names no site");
    return Access{text("server"), text("name"), {}};
  } catch (const std::runtime_error& error) {
    wrong(path.string() + " cannot be used (" + error.what() + "): join again, or give the right --identity");
  }
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
