/// From a token to a certificate, and from one certificate to the next.
///
///     KEY made and kept --> SERVER checked by the token's fingerprint --> ENROL with token and request --> KEPT
#include <absl/strings/str_split.h>

#include <iostream>

#include "../src/calls.h"
#include "certificates.h"
#include "fedstream/v1/enrolment.grpc.pb.h"
#include "identity.h"

namespace fedstream::client {
namespace {

constexpr std::size_t kIdBytes = 8, kSecretBytes = 16, kFingerprintBytes = 32, kCheckBytes = 4;
constexpr std::size_t kTextAt = kIdBytes + kSecretBytes + kFingerprintBytes;
constexpr char kDamaged[] = "the join token is damaged: copy it again, whole";

v1::EnrolResponse enrol(const std::string& address, const JoinToken& token, const v1::EnrolRequest& request) {
  Trust trust;
  trust.fingerprint = token.fingerprint;
  Cancel never;
  try {
    return until_done(
        "joining", {30}, never, [] { return 0; },
        [&] {
          // Nothing but a TLS handshake goes out before the certificate is known to be the token's (R-JOIN-2).
          return ask(v1::EnrolmentService::NewStub(make_channel(address, trust)), &v1::EnrolmentService::Stub::Enrol,
                     request, kAskSeconds, never);
        });
  } catch (const Trouble& error) {
    throw Stop(Exit::kUnreachable,
               "cannot join at " + address + ": " + error.what() + ". Nothing is lost: try again with the same token");
  } catch (const Refusal& error) {
    throw Stop(Exit::kUntrusted, "the server refused (" + error.reason + "): " + error.what());
  }
}

/// The site's private key: the one there is, or a new one, kept before it is told (R-JOIN-1).
std::string key_in(const fs::path& folder) {
  const auto path = folder / "site.key";
  if (fs::exists(path)) return read_file(path);
  fs::create_directories(folder);
  const auto made = make_key();
  write_durably(path, made);
  return made;
}

/// Enrol, check what comes, and keep it; returns the last day of the certificate.
std::string become_member(const JoinToken& token, const Access& wanted, const std::string& enrolment) {
  const auto& folder = wanted.trust.identity;
  Credentials own{key_in(folder), "", ""};
  v1::EnrolRequest request;
  request.set_client_name(token.name);
  request.set_token_id(token.id);
  request.set_token_secret(token.secret);
  request.set_certificate_request(make_request(own.key, token.name));
  const auto answer = enrol(enrolment, token, request);
  own.certificate = der_to_pem(answer.certificate());
  own.authority = der_to_pem(answer.authority());
  check_answer(token.name, own);
  write_durably(folder / "site.crt", own.certificate);
  write_durably(folder / "authority.crt", own.authority);
  google::protobuf::Struct membership;
  (*membership.mutable_fields())["name"].set_string_value(wanted.name);
  (*membership.mutable_fields())["server"].set_string_value(wanted.server);
  write_durably(folder / "identity.json", json_of(membership) + '\n');
  return facts_of(own.certificate).last_day();
}

}  // namespace

JoinToken decode_token(std::string text) {
  text.erase(std::remove_if(text.begin(), text.end(), [](unsigned char c) { return std::isspace(c); }), text.end());
  if (text.rfind("fsj1_", 0) != 0 || text.size() > 2'048) {
    throw std::runtime_error("this is no join token: one begins with fsj1_, as `fedserver invite` prints it");
  }
  std::string contents;
  const bool is_base64url =
      text.find('=') == std::string::npos && absl::WebSafeBase64Unescape(text.substr(5), &contents);
  if (!is_base64url || contents.size() <= kTextAt + kCheckBytes) throw std::runtime_error(kDamaged);
  const auto check = contents.substr(contents.size() - kCheckBytes);
  contents.resize(contents.size() - kCheckBytes);
  if (sha256(contents).substr(0, kCheckBytes) != check) throw std::runtime_error(kDamaged);
  JoinToken token;
  token.id = contents.substr(0, kIdBytes);
  token.secret = contents.substr(kIdBytes, kSecretBytes);
  token.fingerprint = "sha256:" + hex(contents.substr(kIdBytes + kSecretBytes, kFingerprintBytes));
  const std::vector<std::string> lines = absl::StrSplit(contents.substr(kTextAt), '\n');
  if (lines.size() != 3 || !is_client_name(lines[0])) throw std::runtime_error("the token names no site");
  token.name = lines[0], token.server = lines[1], token.enrolment = lines[2];
  split_address(token.server);
  if (token.enrolment.rfind(':', 0) == 0)
    token.enrolment = token.server.substr(0, token.server.rfind(':')) + token.enrolment;
  split_address(token.enrolment);
  return token;
}

std::string join(const std::vector<std::string>& list) {
  const Words words(list, {"", "--token", "--enrolment", "--identity"});
  auto text = words.get("--token");
  if (text.empty()) wrong("give the token with --token");
  if (text == "-") text.assign(std::istreambuf_iterator<char>(std::cin), {});
  JoinToken token;
  Access wanted;
  wanted.trust.identity = identity_folder(words);
  std::string enrolment;
  try {
    token = decode_token(text);
    log_name = wanted.name = token.name;
    wanted.server = words.get("", token.server);
    split_address(wanted.server);
    const auto port = token.enrolment.substr(token.enrolment.rfind(':'));
    enrolment = words.count("") != 0 ? wanted.server.substr(0, wanted.server.rfind(':')) + port : token.enrolment;
    enrolment = words.get("--enrolment", enrolment);
    split_address(enrolment);
  } catch (const std::runtime_error& error) {
    wrong(error.what());
  }
  // One folder is one site of one federation; it may join that again, with the same key.
  const auto folder = wanted.trust.identity.string();
  const auto known = membership_in(folder);
  if (known && (known->name != wanted.name || known->server != wanted.server)) {
    wrong(folder + " is the identity of " + known->name + " at " + known->server +
          ": give another --identity, or remove it if it is out of use");
  }
  try {
    return "joined as " + token.name + "; the certificate is valid until " + become_member(token, wanted, enrolment) +
           " and renews itself.\nIts key is in " + folder + ". Take part with: fedstream-client run --identity " +
           folder + " --data FILE";
  } catch (const Stop&) {
    throw;
  } catch (const fs::filesystem_error& error) {
    wrong(std::string("the identity cannot be kept: ") + error.what());
  } catch (const std::runtime_error& error) {
    throw Stop(Exit::kDefect, std::string("the server's answer or this site's key cannot be used: ") + error.what());
  }
}

bool renew_if_due(const Trust& trust, const std::shared_ptr<grpc::Channel>& channel) {
  if (trust.identity.empty()) return false;
  auto own = *credentials_of(trust);
  const auto before = facts_of(own.certificate);
  if (!before.is_due(std::time(nullptr))) return false;
  Cancel never;
  try {
    const auto answer = ask(v1::CertificateService::NewStub(channel), &v1::CertificateService::Stub::RenewCertificate,
                            v1::RenewCertificateRequest(), kAskSeconds, never);
    own.certificate = der_to_pem(answer.certificate());
    check_answer(before.name, own);
    write_durably(trust.identity / "site.crt", own.certificate);
  } catch (const std::runtime_error& error) {
    log_line("warning", "the certificate could not be renewed",
             {{"because", error.what()}, {"expires", before.last_day()}});
    return false;
  }
  const auto after = facts_of(own.certificate);
  log_line("info", "certificate renewed", {{"expires", after.last_day()}});
  return after.fingerprint != before.fingerprint;
}

}  // namespace fedstream::client
