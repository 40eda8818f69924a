/// A site's identity: its private key, its certificate, and whom it trusts, in one folder, as `fedclient join` has it:
///
///     site.key        the private key; made here, before anything is sent, and never sent
///     site.crt        the site's certificate
///     authority.crt   the federation's authority: servers that it signed are trusted, and nobody else
///     identity.json   who this site is and where the server is; written last, so that without it nothing was joined
#pragma once

#include <optional>
#include <string>

#include "durable.h"
#include "own.pb.h"

namespace fedstream::client {

/// `~/.local/state/` or what `XDG_STATE_HOME` says in its place.
fs::path state_home();

/// What a site shows, and whose signature it trusts; all PEM.
struct Credentials {
  std::string key;
  std::string certificate;
  std::string authority;
};

/// @throws Stop a file cannot be read, or key and certificate do not belong together
Credentials read_credentials(const fs::path& key, const fs::path& certificate, const fs::path& authority);

/// What is in a file of the operator's.
/// @throws Stop it cannot be read
std::string read_named(const fs::path& file);

/// @throws std::runtime_error the certificate is not that of this name and key, or of another authority (R-JOIN-5)
void check_answer(const std::string& name, const Credentials& answered);

class IdentityFolder {
 public:
  explicit IdentityFolder(fs::path folder_) : folder(std::move(folder_)) {}

  /// What was joined, if anything was.
  /// @throws Stop the folder is damaged
  std::optional<Membership> membership() const;

  /// The site's private key: the one there is, or a new one, kept before it is told (R-JOIN-1).
  std::string key() const;

  /// Keep what a server has given to this site.
  void keep(const Membership& membership, const Credentials& answered) const;
  void keep_certificate(const std::string& pem) const { write_durably(folder / "site.crt", pem); }

  /// Key, certificate and authority as they are now: they change when they are renewed.
  /// @throws Stop
  Credentials credentials() const;

  const fs::path folder;
};

}  // namespace fedstream::client
