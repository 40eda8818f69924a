/// All that the client asks of this folder: who it is, whom it trusts, and how it became a member.
///
/// A site's identity is one folder, as `fedclient join` has it too:
///
///     site.key        the private key; made here, before anything is sent, and never sent
///     site.crt        the site's certificate
///     authority.crt   the federation's authority: servers that it signed are trusted, and nobody else
///     identity.json   who this site is and where the server is; written last, so that without it nothing was joined
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/security/credentials.h>

#include <filesystem>
#include <memory>

#include "../src/basics.h"

namespace fedstream::client {

/// A name that every server certificate carries, whatever address the server is reached by.
inline constexpr char kServerName[] = "fedstream-server";

/// What the operator chose: nothing on this machine, a fingerprint, an identity, or files, of which the first two may
/// be missing. A fingerprint is `sha256:` and the SHA-256 of the server certificate's DER form, in small letters.
struct Trust {
  bool plaintext = false;
  std::string fingerprint;
  std::filesystem::path identity;
  std::filesystem::path certificate, key, server_ca;
};

struct Access {
  std::string server;  // HOST:PORT
  std::string name;
  Trust trust;
};

/// What the options of `run` leave out is what joining left. @throws Stop
Access complete(Access access);

/// The server as it was joined, whatever address leads to it now; where nothing was joined, as it is dialled.
/// @throws Stop
std::string joined_server(const Access& access);

/// See who answers at the address, and say how to connect to it. Blocks for some 12 s at most. gRPC could only say that
/// a handshake failed, and would try for ever.
/// @throws Trouble nobody answers, or it hangs up
/// @throws Stop it is another server, or this site's certificate has expired or cannot be read
std::shared_ptr<grpc::ChannelCredentials> look_at(const std::string& address, const Trust& trust);

/// Get the next certificate if it is time (R-JOIN-6); whether there is one. After a failure the next look tries again.
bool renew_if_due(const Trust& trust, const std::shared_ptr<grpc::Channel>& channel);

/// For how long a session may last before it is worth a look whether it is time for the next certificate; without end
/// where none is renewed. A look in the last third of a certificate ends a session, which comes back with the next one.
double seconds_to_look(const Trust& trust);

/// What `join` is told: a token, or a file with it; the rest may be empty, and then is what the token says.
struct JoinOptions {
  std::string server, token, enrolment;
  std::filesystem::path token_file, identity;
};

/// The command `join`; returns what to say to the operator. It may be cut anywhere and done again with the same token:
/// the key is kept before it is used, and the server gives the same key the same certificate.
/// @throws Stop
std::string join(const JoinOptions& options);

/// `~/.local/state/` or what `XDG_STATE_HOME` says in its place.
std::filesystem::path state_home();

}  // namespace fedstream::client
