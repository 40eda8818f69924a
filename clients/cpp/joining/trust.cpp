/// Who answers at an address: a TLS handshake of our own before the channel is made.
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cstring>

#include "certificates.h"
#include "identity.h"

namespace fedstream::client {
namespace {

class Socket {
 public:
  explicit Socket(const std::string& address) {
    const auto [host, port] = split_address(address);
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (const int failed = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); failed != 0) {
      throw Trouble("cannot reach " + address + " (" + gai_strerror(failed) + "); is the name right?");
    }
    const std::unique_ptr<addrinfo, Freed<freeaddrinfo>> places(found);
    std::string why;
    for (const addrinfo* place = found; place != nullptr; place = place->ai_next) {
      descriptor = ::socket(place->ai_family, place->ai_socktype | SOCK_CLOEXEC, place->ai_protocol);
      wait_at_most(10);  // for connecting too
      if (::connect(descriptor, place->ai_addr, place->ai_addrlen) == 0) return;
      why = errno == EINPROGRESS ? "no answer in time" : std::strerror(errno);
      ::close(descriptor);
    }
    throw Trouble("cannot reach " + address + " (" + why + "); is the server running and the port open?");
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

/// A context that shows the site's certificate, if it has one, and asks for the authority's signature, if that is known.
std::unique_ptr<SSL_CTX, Freed<SSL_CTX_free>> context_of(const std::optional<Credentials>& own) {
  std::unique_ptr<SSL_CTX, Freed<SSL_CTX_free>> context(SSL_CTX_new(TLS_client_method()));
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  if (!own) return context;  // the fingerprint will decide
  X509_STORE_add_cert(SSL_CTX_get_cert_store(context.get()), read_certificate(own->authority).get());
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  if (own->certificate.empty()) return context;
  SSL_CTX_use_certificate(context.get(), read_certificate(own->certificate).get());
  SSL_CTX_use_PrivateKey(context.get(), read_key(own->key).get());
  return context;
}

/// The certificate that the server shows, and whether it hung up then: with TLS 1.3 a server that misses a certificate
/// ends the connection after the handshake; else HTTP/2 begins.
std::pair<Certificate, bool> shake_hands(const std::string& address, const std::optional<Credentials>& own) {
  const Socket socket(address);
  const auto context = context_of(own);
  const std::unique_ptr<SSL, Freed<SSL_free>> session(SSL_new(context.get()));
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
    throw Trouble(address + " does not speak TLS (" + (reason != nullptr ? reason : "it hung up") + "); is it the right port?");
  }
  Certificate certificate(SSL_get1_peer_certificate(session.get()));
  if (certificate == nullptr) throw Trouble(address + " shows no certificate");
  socket.wait_at_most(2);
  char byte = 0;
  const int read = SSL_read(session.get(), &byte, 1);
  return {std::move(certificate), read <= 0 && SSL_get_error(session.get(), read) != SSL_ERROR_WANT_READ};
}

}  // namespace

std::shared_ptr<grpc::ChannelCredentials> look_at(const std::string& address, const Trust& trust) {
  if (trust.plaintext) return grpc::InsecureChannelCredentials();
  const auto own = credentials_of(trust);
  if (own && !own->certificate.empty()) {
    const auto facts = facts_of(own->certificate);
    if (facts.expires <= std::time(nullptr)) {  // the server would only hang up
      throw Stop(Exit::kUntrusted, "this site's certificate has expired on " + facts.last_day() +
                                       ": ask the coordinator for a new invitation, and join again");
    }
  }
  const auto [certificate, hung_up] = shake_hands(address, own);
  if (const auto actual = facts_of(certificate.get()).fingerprint; !own && actual != trust.fingerprint) {  // R-CON-2
    throw Stop(Exit::kUntrusted, "the server at " + address + " has the certificate " + actual + ", not " + trust.fingerprint +
                                     ": it is another server, or somebody is in between. Ask the coordinator for the "
                                     "current join command. Nothing was sent to it");
  }
  if (hung_up) {  // which a server that is just being stopped does too, so that it is worth coming back
    throw Trouble(address + " hung up after the handshake; if it goes on doing so, it " +
                  (own ? "does not take this site's certificate: ask the coordinator"
                       : "takes only sites with a certificate: ask the coordinator for an invitation, join, and leave "
                         "--fingerprint out"));
  }
  // The certificate that was compared, or the authority, is the only root that the channel knows.
  if (!own) return grpc::SslCredentials({to_pem(certificate.get()), "", ""});
  return grpc::SslCredentials({own->authority, own->key, own->certificate});
}

}  // namespace fedstream::client
