/// From a token to a certificate, and from one certificate to the next.
///
///     KEY made and kept --> SERVER checked by the token's fingerprint --> ENROL with token and request --> KEPT
///
/// Joining may be cut anywhere and done again with the same token: the key is kept before it is used, and the server
/// gives the same key the same certificate.
#pragma once

#include <string>

#include "connection.h"
#include "identity.h"
#include "log.h"

namespace fedstream::client {

/// An invitation of one site. `server` and `enrolment` are HOST:PORT.
struct JoinToken {
  std::string id;
  std::string secret;
  std::string fingerprint;
  std::string name;
  std::string server;
  std::string enrolment;
};

/// The token that `text` is; white space around or in it does not count.
/// @throws std::runtime_error it is none; the message does not hold any part of it
JoinToken decode_token(std::string text);

/// Join; returns what to say to the operator.
/// @param server, enrolment where they are, if that is elsewhere than the token says; else empty
/// @throws Stop
std::string join(const JoinToken& token, std::string server, std::string enrolment, const IdentityFolder& folder);

/// Get the next certificate if it is time (R-JOIN-6); whether there is one. After a failure the next look tries again.
bool renew_if_due(const IdentityFolder& folder, Connection& connection, const Log& log);

}  // namespace fedstream::client
