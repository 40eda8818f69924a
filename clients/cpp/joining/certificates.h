/// Keys, certificate requests and certificates, by OpenSSL. All keys are P-256; text forms are PEM.
#pragma once

#include <absl/time/time.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <memory>

#include "../src/model.h"

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
  /// Until it is due; where it is, so long that several looks are left, and each takes the connection from what it
  /// carries.
  double seconds_to_look(std::time_t now) const {
    const double validity = double(expires - begins);
    return std::max({60.0, double(expires - now) - validity / 3, std::min(3'600.0, validity / 12)});
  }
  /// The last day, such as 2030-01-31.
  std::string last_day() const { return absl::FormatTime("%Y-%m-%d", absl::FromTimeT(expires), absl::UTCTimeZone()); }
};

// All that follow throw std::runtime_error for what they cannot read or make.

using Memory = std::unique_ptr<BIO, Freed<BIO_free_all>>;

inline void require(bool condition, const char* message) {
  if (!condition) throw std::runtime_error(message);
}

inline Memory reading(const std::string& text) { return Memory(BIO_new_mem_buf(text.data(), int(text.size()))); }

inline std::string content(BIO* memory) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory, &data);
  return {data, std::size_t(size)};
}

/// What `write` writes, such as i2d_X509: once for the size, once for the bytes.
template <class T>
inline std::string der_of(T* object, int (*write)(const T*, unsigned char**)) {
  std::string der(std::size_t(std::max(write(object, nullptr), 0)), '\0');
  auto* place = reinterpret_cast<unsigned char*>(der.data());
  write(object, &place);
  return der;
}

inline std::time_t time_of(const ASN1_TIME* time) {
  std::tm parts{};
  require(ASN1_TIME_to_tm(time, &parts) == 1, "a certificate has a time that is none");
  return timegm(&parts);
}

inline std::string make_key() {
  const Key key(EVP_EC_gen("P-256"));
  const Memory memory(BIO_new(BIO_s_mem()));
  const bool is_made = key != nullptr && PEM_write_bio_PKCS8PrivateKey(memory.get(), key.get(), nullptr, nullptr, 0,
                                                                       nullptr, nullptr) == 1;
  require(is_made, "no key can be made");
  return content(memory.get());
}

inline Key read_key(const std::string& pem) {
  // Without a password: OpenSSL would ask for one at the terminal.
  const auto no_password = [](char*, int, int, void*) { return -1; };
  Key key(PEM_read_bio_PrivateKey(reading(pem).get(), nullptr, no_password, nullptr));
  require(key != nullptr, "it is no private key in PEM form");
  char group[32] = "";
  EVP_PKEY_get_utf8_string_param(key.get(), "group", group, sizeof group, nullptr);
  require(std::string(group) == "prime256v1", "the private key is none of P-256");
  return key;
}

/// The public half, in DER.
inline std::string public_key(EVP_PKEY* key) { return der_of<EVP_PKEY>(key, i2d_PUBKEY); }

/// A PKCS #10 request, DER, for the site `name`, signed by its key.
inline std::string make_request(const std::string& key_pem, const std::string& name) {
  const Key key = read_key(key_pem);
  const std::unique_ptr<X509_REQ, Freed<X509_REQ_free>> request(X509_REQ_new());
  X509_NAME* subject = X509_REQ_get_subject_name(request.get());
  const auto* text = reinterpret_cast<const unsigned char*>(name.data());
  require(X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, text, int(name.size()), -1, 0) == 1 &&
              X509_REQ_set_pubkey(request.get(), key.get()) == 1 &&
              X509_REQ_sign(request.get(), key.get(), EVP_sha256()) > 0,
          "no certificate request can be made");
  return der_of<X509_REQ>(request.get(), i2d_X509_REQ);
}

inline Certificate read_certificate(const std::string& pem) {
  Certificate certificate(PEM_read_bio_X509(reading(pem).get(), nullptr, nullptr, nullptr));
  require(certificate != nullptr, "it is no certificate in PEM form");
  return certificate;
}

inline CertificateFacts facts_of(X509* certificate) {
  const X509_NAME* subject = X509_get_subject_name(certificate);
  const int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  std::string name;
  // One common name, or none that counts.
  if (at >= 0 && X509_NAME_get_index_by_NID(subject, NID_commonName, at) < 0) {
    const ASN1_STRING* text = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at));
    name.assign(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)), std::size_t(ASN1_STRING_length(text)));
  }
  EVP_PKEY* key = X509_get0_pubkey(certificate);
  require(key != nullptr, "a certificate has no key that can be read");
  return {name, "sha256:" + hex(sha256(der_of<X509>(certificate, i2d_X509))), public_key(key),
          time_of(X509_get0_notBefore(certificate)), time_of(X509_get0_notAfter(certificate))};
}

inline CertificateFacts facts_of(const std::string& pem) { return facts_of(read_certificate(pem).get()); }

inline std::string to_pem(X509* certificate) {
  const Memory memory(BIO_new(BIO_s_mem()));
  require(PEM_write_bio_X509(memory.get(), certificate) == 1, "a certificate cannot be written");
  return content(memory.get());
}

inline std::string der_to_pem(const std::string& der) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(der.data());
  const Certificate certificate(d2i_X509(nullptr, &bytes, long(der.size())));
  require(certificate != nullptr, "it is no certificate in DER form");
  return to_pem(certificate.get());
}

/// Whether the authority signed the certificate; both PEM.
inline bool is_issued_by(const std::string& certificate, const std::string& authority) {
  const auto issued = read_certificate(certificate), issuer = read_certificate(authority);
  return X509_check_issued(issuer.get(), issued.get()) == X509_V_OK &&
         X509_verify(issued.get(), X509_get0_pubkey(issuer.get())) == 1;
}

}  // namespace fedstream::client
