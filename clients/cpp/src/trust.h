/// Whom a client trusts and what it shows of itself: nothing on this machine, a fingerprint, or certificates.
///
/// A fingerprint is the SHA-256 of the server certificate's DER form. Who answers is looked at before each session:
/// gRPC could only say that a handshake failed, and would try for ever. Then the certificate that was compared, or the
/// authority, is the only root that the channel knows.
#pragma once

#include <grpcpp/security/credentials.h>

#include <memory>
#include <optional>
#include <string>

#include "identity.h"

namespace fedstream::client {

/// A name that every server certificate carries, whatever address the server is reached by.
constexpr char kServerName[] = "fedstream-server";

/// What the operator chose; exactly one of them, but for the three files, which may lack the first two.
struct Trust {
  bool plaintext = false;
  std::string fingerprint;
  fs::path identity;
  fs::path certificate, key, server_ca;

  /// As the files are now; key and certificate are empty where the site has none.
  std::optional<Credentials> credentials() const;
};

/// See who answers at the address, and say how to connect to it. Blocks for some 12 s at most.
/// @throws Trouble nobody answers, or it hangs up
/// @throws Stop it is another server, or this site's certificate has expired or cannot be read
std::shared_ptr<grpc::ChannelCredentials> look_at(const std::string& address, const Trust& trust);

}  // namespace fedstream::client
