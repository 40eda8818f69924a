/// Keys, certificate requests and certificates, by OpenSSL. All keys are P-256; text forms are PEM.
#pragma once

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <ctime>
#include <memory>
#include <string>

namespace fedstream::client {

/// Something of OpenSSL, freed in any case.
template <class T, void (*free)(T*)>
struct Freed {
  void operator()(T* object) const { free(object); }
};
using Certificate = std::unique_ptr<X509, Freed<X509, X509_free>>;

/// What a certificate says. `fingerprint` is `sha256:` and 64 digits, `key_sha256` that of the public key in DER.
struct CertificateFacts {
  std::string name;
  std::string fingerprint;
  std::string key_sha256;
  std::time_t begins;
  std::time_t expires;

  /// Whether less than a third of the validity is left, so that it is time for the next one.
  bool is_due(std::time_t now) const { return expires - now < (expires - begins) / 3; }
};

/// A new private key.
std::string make_key();

/// A PKCS #10 request, DER, for the site `name`, signed by its key.
std::string make_request(const std::string& key, const std::string& name);

/// SHA-256 of the public half of a private key.
/// @throws std::runtime_error it is none of P-256
std::string key_sha256(const std::string& key);

/// @throws std::runtime_error it is no certificate
Certificate read_certificate(const std::string& pem);
CertificateFacts facts_of(X509* certificate);
std::string der_to_pem(const std::string& der);
std::string to_pem(X509* certificate);

/// Whether the authority signed the certificate.
bool is_issued_by(X509* certificate, X509* authority);

/// A day such as 2030-01-31.
std::string day_of(std::time_t time);

}  // namespace fedstream::client
