#include "identity.h"

#include <google/protobuf/util/json_util.h>

#include <cstdlib>

#include "address.h"
#include "certificates.h"
#include "errors.h"
#include "limits.h"

namespace fedstream::client {

fs::path state_home() {
  if (const char* home = std::getenv("XDG_STATE_HOME"); home != nullptr && *home != '\0') return home;
  const char* home = std::getenv("HOME");
  return fs::path(home == nullptr ? "." : home) / ".local" / "state";
}

std::string read_named(const fs::path& file) {
  try {
    return read_file(file);
  } catch (const fs::filesystem_error& error) {
    throw Stop(Exit::kBadConfiguration, file.string() + " cannot be used: " + error.code().message());
  }
}

Credentials read_credentials(const fs::path& key, const fs::path& certificate, const fs::path& authority) {
  const Credentials found{read_named(key), read_named(certificate), read_named(authority)};
  std::string own_key;
  CertificateFacts facts;
  fs::path at = key;
  try {
    own_key = key_sha256(found.key);
    facts = facts_of(read_certificate(found.certificate).get());
    at = authority;
    read_certificate(found.authority);
  } catch (const std::runtime_error& error) {
    if (at == key && !own_key.empty()) at = certificate;
    throw Stop(Exit::kBadConfiguration, at.string() + " cannot be used: " + error.what());
  }
  if (own_key != facts.key_sha256) {
    throw Stop(Exit::kBadConfiguration, certificate.string() + " is not the certificate of the key " + key.string());
  }
  return found;
}

void check_answer(const std::string& name, const Credentials& answered) {
  const auto certificate = read_certificate(answered.certificate);
  const auto facts = facts_of(certificate.get());
  if (facts.name != name || facts.key_sha256 != key_sha256(answered.key) ||
      !is_issued_by(certificate.get(), read_certificate(answered.authority).get())) {
    throw std::runtime_error("the certificate that came is not the one that was asked for");
  }
}

std::optional<Membership> IdentityFolder::membership() const {
  const auto path = folder / "identity.json";
  if (!fs::exists(path)) return std::nullopt;
  try {
    Membership found;
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;
    if (!google::protobuf::util::JsonStringToMessage(read_file(path), &found, options).ok()) {
      throw std::runtime_error("it is damaged");
    }
    split_address(found.server());
    if (!limits::is_client_name(found.name())) throw std::runtime_error("it names no site");
    return found;
  } catch (const std::runtime_error& error) {
    throw Stop(Exit::kBadConfiguration,
               path.string() + " cannot be used (" + error.what() + "): join again, or give the right --identity");
  }
}

std::string IdentityFolder::key() const {
  const auto path = folder / "site.key";
  if (fs::exists(path)) return read_file(path);
  make_folder(folder);
  const auto made = make_key();
  write_durably(path, made);
  return made;
}

void IdentityFolder::keep(const Membership& membership, const Credentials& answered) const {
  keep_certificate(answered.certificate);
  write_durably(folder / "authority.crt", answered.authority);
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(membership, &json, options).ok())
    throw std::runtime_error("no JSON");
  write_durably(folder / "identity.json", json);
}

Credentials IdentityFolder::credentials() const {
  const auto found = read_credentials(folder / "site.key", folder / "site.crt", folder / "authority.crt");
  // The server would only hang up.
  if (!is_issued_by(read_certificate(found.certificate).get(), read_certificate(found.authority).get())) {
    throw Stop(Exit::kBadConfiguration, (folder / "site.crt").string() + " is none of " +
                                            (folder / "authority.crt").string() +
                                            ": one of them is damaged; ask the coordinator for a new invitation");
  }
  return found;
}

}  // namespace fedstream::client
