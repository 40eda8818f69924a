/// Keys, certificate requests and certificates, by OpenSSL. All keys are P-256; text forms are PEM.
#pragma once

#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>
#include <memory>
#include <string>

namespace fedstream::client {

/// Something of OpenSSL, freed in any case.
template <auto free>
struct Freed {
  template <class T>
  void operator()(T* object) const {
    free(object);
  }
};
using Certificate = std::unique_ptr<X509, Freed<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY_free>>;

/// What a certificate says. `fingerprint` is `sha256:` and 64 digits, `key` its public key in DER.
struct CertificateFacts {
  std::string name, fingerprint, key;
  std::time_t begins, expires;

  /// Whether less than a third of the validity is left, so that it is time for the next one.
  bool is_due(std::time_t now) const { return expires - now < (expires - begins) / 3; }
  /// The last day, such as 2030-01-31.
  std::string last_day() const;
};

// All throw std::runtime_error for what they cannot read or make.
std::string make_key();
Key read_key(const std::string& pem);
/// The public half, in DER.
std::string public_key(EVP_PKEY* key);
/// A PKCS #10 request, DER, for the site `name`, signed by its key.
std::string make_request(const std::string& key, const std::string& name);
Certificate read_certificate(const std::string& pem);
CertificateFacts facts_of(X509* certificate);
inline CertificateFacts facts_of(const std::string& pem) { return facts_of(read_certificate(pem).get()); }
std::string der_to_pem(const std::string& der);
std::string to_pem(X509* certificate);
/// Whether the authority signed the certificate; both PEM.
bool is_issued_by(const std::string& certificate, const std::string& authority);

}  // namespace fedstream::client
