#include "trust.h"

#include <netdb.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "address.h"
#include "certificates.h"
#include "errors.h"

namespace fedstream::client {
namespace {

constexpr int kConnectSeconds = 10;
constexpr int kAnswerSeconds = 2;

using Context = std::unique_ptr<SSL_CTX, Freed<SSL_CTX, SSL_CTX_free>>;
using Session = std::unique_ptr<SSL, Freed<SSL, SSL_free>>;

class Socket {
 public:
  explicit Socket(const std::string& address) {
    const auto [host, port] = split_address(address);
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (const int failed = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); failed != 0) {
      throw Trouble("cannot reach " + address + " (" + gai_strerror(failed) + "); is the name right?");
    }
    const std::unique_ptr<addrinfo, Freed<addrinfo, freeaddrinfo>> places(found);
    for (const addrinfo* place = found; place != nullptr; place = place->ai_next) {
      descriptor = ::socket(place->ai_family, place->ai_socktype | SOCK_CLOEXEC, place->ai_protocol);
      wait_at_most(kConnectSeconds);  // for connecting too
      if (::connect(descriptor, place->ai_addr, place->ai_addrlen) == 0) return;
      const std::string why = errno == EINPROGRESS ? "no answer in time" : std::strerror(errno);
      ::close(descriptor);
      if (place->ai_next == nullptr) {
        throw Trouble("cannot reach " + address + " (" + why + "); is the server running and the port open?");
      }
    }
  }
  ~Socket() { ::close(descriptor); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  void wait_at_most(int seconds) const {
    const timeval span{seconds, 0};
    ::setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &span, sizeof span);
    ::setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &span, sizeof span);
  }

  int descriptor = -1;
};

/// With TLS 1.3 a server that misses a certificate ends the connection after the handshake; else HTTP/2 begins.
bool hangs_up(SSL* session, const Socket& socket) {
  socket.wait_at_most(kAnswerSeconds);
  char byte = 0;
  const int read = SSL_read(session, &byte, 1);
  return read <= 0 && SSL_get_error(session, read) != SSL_ERROR_WANT_READ;
}

/// A context that shows the site's certificate, if it has one, and asks for the authority's signature, if that is
/// known.
Context context_of(const std::optional<Credentials>& own) {
  Context context(SSL_CTX_new(TLS_client_method()));
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  if (!own) return context;  // the fingerprint will decide
  const auto authority = read_certificate(own->authority);
  X509_STORE_add_cert(SSL_CTX_get_cert_store(context.get()), authority.get());
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  if (own->certificate.empty()) return context;
  const std::unique_ptr<BIO, Freed<BIO, BIO_free_all>> pem(BIO_new_mem_buf(own->key.data(), int(own->key.size())));
  const std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY, EVP_PKEY_free>> key(
      PEM_read_bio_PrivateKey(pem.get(), nullptr, nullptr, nullptr));
  SSL_CTX_use_certificate(context.get(), read_certificate(own->certificate).get());
  SSL_CTX_use_PrivateKey(context.get(), key.get());
  return context;
}

struct Shown {
  Certificate certificate;
  bool hung_up;
};

Shown shake_hands(const std::string& address, const std::optional<Credentials>& own) {
  const Socket socket(address);
  const auto context = context_of(own);
  const Session session(SSL_new(context.get()));
  SSL_set_fd(session.get(), socket.descriptor);
  SSL_set_tlsext_host_name(session.get(), kServerName);
  SSL_set1_host(session.get(), kServerName);
  const unsigned char alpn[] = {2, 'h', '2'};
  SSL_set_alpn_protos(session.get(), alpn, sizeof alpn);
  ERR_clear_error();
  if (SSL_connect(session.get()) != 1) {
    if (const auto wrong = SSL_get_verify_result(session.get()); wrong != X509_V_OK) {
      throw Stop(Exit::kUntrusted, "the server at " + address + " has no certificate of this federation's authority (" +
                                       X509_verify_cert_error_string(wrong) +
                                       "): it is another server, or somebody is in between. Ask the coordinator");
    }
    const char* reason = ERR_reason_error_string(ERR_peek_last_error());
    throw Trouble(address + " does not speak TLS (" + (reason != nullptr ? reason : "it hung up") +
                  "); is it the right port?");
  }
  Certificate certificate(SSL_get1_peer_certificate(session.get()));
  if (certificate == nullptr) throw Trouble(address + " shows no certificate");
  return {std::move(certificate), hangs_up(session.get(), socket)};
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  return text;
}

/// The server's certificate, if its fingerprint is the one that was named (R-CON-2).
std::string pinned_certificate(const std::string& address, const std::string& fingerprint) {
  const auto shown = shake_hands(address, std::nullopt);
  const auto actual = facts_of(shown.certificate.get()).fingerprint;
  if (actual != lower(fingerprint)) {
    throw Stop(Exit::kUntrusted, "the server at " + address + " has the certificate " + actual + ", not " +
                                     fingerprint +
                                     ": it is another server, or somebody is in between. Ask the coordinator for the "
                                     "current join command. Nothing was sent to it");
  }
  if (shown.hung_up) {  // which a server that is just being stopped does too, so that it is worth coming back
    throw Trouble(address +
                  " hung up after the handshake; if it goes on doing so, it takes only sites with a "
                  "certificate: ask the coordinator for an invitation, join, and leave --fingerprint out");
  }
  return to_pem(shown.certificate.get());
}

/// The server would only hang up.
void require_valid(const std::string& certificate) {
  const auto expires = facts_of(read_certificate(certificate).get()).expires;
  if (expires > std::time(nullptr)) return;
  throw Stop(Exit::kUntrusted, "this site's certificate has expired on " + day_of(expires) +
                                   ": ask the coordinator for a new invitation, and join again");
}

void check_server(const std::string& address, const Credentials& own) {
  if (!own.certificate.empty()) require_valid(own.certificate);
  if (shake_hands(address, own).hung_up) {  // as one that is just being stopped does too
    throw Trouble(address +
                  " hung up after the handshake; if it goes on doing so, it does not take this site's "
                  "certificate: ask the coordinator");
  }
}

}  // namespace

std::optional<Credentials> Trust::credentials() const {
  if (!identity.empty()) return IdentityFolder(identity).credentials();
  if (server_ca.empty()) return std::nullopt;
  if (certificate.empty()) return Credentials{"", "", read_named(server_ca)};
  return read_credentials(key, certificate, server_ca);
}

std::shared_ptr<grpc::ChannelCredentials> look_at(const std::string& address, const Trust& trust) {
  if (trust.plaintext) return grpc::InsecureChannelCredentials();
  const auto own = trust.credentials();
  if (!own) return grpc::SslCredentials({pinned_certificate(address, trust.fingerprint), "", ""});
  check_server(address, *own);
  return grpc::SslCredentials({own->authority, own->key, own->certificate});
}

}  // namespace fedstream::client
