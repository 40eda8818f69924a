/// What joining leaves on disk, names and addresses; for this folder alone.
#pragma once

#include "../src/model.h"
#include "joining.h"

namespace fedstream::client {

/// What a site shows, and whose signature it trusts; all PEM.
struct Credentials {
  std::string key, certificate, authority;
};

/// As the files are now: they change when a certificate is renewed. None for a fingerprint or nothing; key and
/// certificate are empty where the site has none. @throws Stop
std::optional<Credentials> credentials_of(const Trust& trust);

/// @throws std::runtime_error the certificate is not that of this name and key, or of another authority (R-JOIN-5)
void check_answer(const std::string& name, const Credentials& answered);

/// Server and name of what was joined there, if anything was. @throws Stop
std::optional<Access> membership_in(const fs::path& folder);

/// Where an identity is kept if nothing else is said.
fs::path default_identity();

bool is_client_name(const std::string& name);

/// The host of `HOST:PORT` or `[V6ADDRESS]:PORT`. @throws Stop it is none
std::string host_of(const std::string& address);

/// An invitation of one site, with the fingerprint of its server's certificate.
struct JoinToken {
  std::string id, secret, fingerprint, name;
  std::string server, enrolment;  // HOST:PORT
};

/// The token that stands alone in the text, or in the whole of what `fedserver invite` printed.
/// @throws Stop it is none; the message does not hold any part of it
JoinToken decode_token(const std::string& printed);

}  // namespace fedstream::client
