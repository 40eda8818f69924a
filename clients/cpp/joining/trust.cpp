/// Who answers at an address: a TLS handshake of our own before the channel is made.
#include <absl/time/clock.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <cstring>

#include "certificates.h"
#include "identity.h"

namespace fedstream::client {
namespace {

/// A context that shows the site's certificate, if it has one, and asks for the authority's signature, if that is
/// known.
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
  const auto context = context_of(own);
  const std::unique_ptr<BIO, Freed<BIO_free_all>> connection(BIO_new_ssl_connect(context.get()));
  SSL* session = nullptr;
  BIO_get_ssl(connection.get(), &session);
  BIO_set_conn_hostname(connection.get(), address.c_str());
  BIO_set_nbio(connection.get(), 1);  // for the limits of time below
  SSL_set_tlsext_host_name(session, kServerName);
  SSL_set1_host(session, kServerName);
  const unsigned char alpn[] = {2, 'h', '2'};
  SSL_set_alpn_protos(session, alpn, sizeof alpn);
  ERR_clear_error();
  const auto begun = std::time(nullptr);
  int connected = 0;
  while ((connected = BIO_do_connect(connection.get())) != 1 && BIO_should_retry(connection.get())) {
    if (BIO_wait(connection.get(), begun + 10, 20) != 1) throw Trouble(address + " does not answer in time");
  }
  if (connected != 1) {
    const auto wrong = SSL_get_verify_result(session);
    if (wrong == X509_V_ERR_CERT_NOT_YET_VALID) {  // a machine whose clock is wrong after its start may set it soon
      throw Trouble("the certificate of the server at " + address +
                    " is not valid yet, and this machine's clock says " +
                    absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone()) +
                    ": set this machine's clock");
    }
    if (wrong != X509_V_OK) {
      throw Stop(Exit::kUntrusted, "the server at " + address + " has no certificate of this federation's authority (" +
                                       X509_verify_cert_error_string(wrong) +
                                       "): it is another server, or somebody is in between. Ask the coordinator");
    }
    const auto error = ERR_peek_error();
    const char* why = ERR_SYSTEM_ERROR(error) ? std::strerror(ERR_GET_REASON(error)) : ERR_reason_error_string(error);
    throw Trouble("cannot reach " + address + " by TLS (" + (why != nullptr ? why : "it hung up") +
                  "); is the server running, and the port open and right?");
  }
  Certificate certificate(SSL_get1_peer_certificate(session));
  if (certificate == nullptr) throw Trouble(address + " shows no certificate");
  const auto until = std::time(nullptr) + 2;
  char byte = 0;
  bool hung_up = false, is_heard = false;
  while (!is_heard && !hung_up) {
    is_heard = BIO_read(connection.get(), &byte, 1) > 0;
    hung_up = !is_heard && !BIO_should_retry(connection.get());
    if (!is_heard && !hung_up && BIO_wait(connection.get(), until, 20) != 1) break;  // it stays, without a word
  }
  return {std::move(certificate), hung_up};
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
    throw Stop(Exit::kUntrusted, "the server at " + address + " has the certificate " + actual + ", not " +
                                     trust.fingerprint +
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
