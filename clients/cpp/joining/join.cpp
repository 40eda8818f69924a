/// From a token to a certificate, and from one certificate to the next.
///
///     KEY made and kept --> SERVER checked by the token's fingerprint --> ENROL with token and request --> KEPT
#include <absl/strings/str_split.h>

#include <iostream>
#include <set>

#include "../src/calls.h"
#include "certificates.h"
#include "fedstream/v1/enrolment.grpc.pb.h"
#include "identity.h"

namespace fedstream::client {
namespace {

constexpr std::size_t kIdBytes = 8, kSecretBytes = 16, kFingerprintBytes = 32, kCheckBytes = 4;
constexpr char kPrefix[] = "fsj1_";
constexpr std::size_t kTextAt = kIdBytes + kSecretBytes + kFingerprintBytes;

v1::EnrolResponse enrol(const std::string& address, const JoinToken& token, const v1::EnrolRequest& request) {
  Trust trust;
  trust.fingerprint = token.fingerprint;
  Effort effort(30);
  try {
    return effort.until_done("joining", [&] {
      // Nothing but a TLS handshake goes out before the certificate is known to be the token's (R-JOIN-2).
      const auto stub = v1::EnrolmentService::NewStub(make_channel(address, trust));
      v1::EnrolResponse answer;
      require_ok(stub->Enrol(effort.call(kAskSeconds), request, &answer));
      return answer;
    });
  } catch (const Trouble& error) {
    throw Stop(Exit::kUnreachable,
               "cannot join at " + address + ": " + error.what() + ". Nothing is lost: try again with the same token");
  } catch (const Refusal& error) {
    throw Stop(Exit::kUntrusted, std::string("the server refused: ") + error.what());
  }
}

/// The first address's host with the other's port.
std::string at_host_of(const std::string& address, const std::string& other) {
  return address.substr(0, address.rfind(':')) + other.substr(other.rfind(':'));
}

/// The site's private key: the one there is, or a new one, kept before it is told (R-JOIN-1).
std::string key_in(const fs::path& folder) {
  const auto path = folder / "site.key";
  if (fs::exists(path)) return read_file(path);
  make_folder(folder);
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
  const Json membership{{"name", wanted.name}, {"server", wanted.server}};
  write_durably(folder / "identity.json", membership.dump() + '\n');
  return facts_of(own.certificate).last_day();
}

/// The one token among the words of a text. A text that begins with one is nothing else: a mail program may have broken
/// it into several words.
std::string token_in(const std::string& text) {
  const std::vector<std::string> words = absl::StrSplit(text, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty());
  std::set<std::string> found;
  for (const auto& word : words) {
    if (word.rfind(kPrefix, 0) == 0) found.insert(word);
  }
  if (found.empty() || words[0].rfind(kPrefix, 0) == 0) return absl::StrJoin(words, "");
  if (found.size() > 1) wrong("there are several join tokens in this text: give the one that is for this site");
  return *found.begin();
}

/// As it was given: a token on a command line is seen by other users of the machine.
std::string token_text(const JoinOptions& options) {
  if (options.token.empty() == options.token_file.empty()) wrong("give the token with --token or with --token-file");
  if (options.token == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  if (options.token_file.empty()) return options.token;
  try {
    return read_file(options.token_file);
  } catch (const std::system_error& error) {
    wrong("the token cannot be read: " + options.token_file.string() + ": " + error.code().message());
  }
}

}  // namespace

JoinToken decode_token(const std::string& printed) {
  const auto text = token_in(printed);
  std::string contents;
  const bool is_token = text.rfind(kPrefix, 0) == 0 && text.size() <= 2'048 && text.find('=') == std::string::npos &&
                        absl::WebSafeBase64Unescape(text.substr(5), &contents) &&
                        contents.size() > kTextAt + kCheckBytes;
  const auto check = contents.substr(contents.size() - std::min(contents.size(), kCheckBytes));
  contents.resize(contents.size() - check.size());
  if (!is_token || sha256(contents).substr(0, kCheckBytes) != check) {
    wrong("this is no join token, or a damaged one: copy it again, whole, as `fedserver invite` prints it");
  }
  JoinToken token;
  token.id = contents.substr(0, kIdBytes);
  token.secret = contents.substr(kIdBytes, kSecretBytes);
  token.fingerprint = "sha256:" + hex(contents.substr(kIdBytes + kSecretBytes, kFingerprintBytes));
  const std::vector<std::string> lines = absl::StrSplit(contents.substr(kTextAt), '\n');
  if (lines.size() != 3 || !is_client_name(lines[0])) wrong("the token names no site");
  token.name = lines[0], token.server = lines[1], token.enrolment = lines[2];
  host_of(token.server);
  if (token.enrolment.rfind(':', 0) == 0) token.enrolment = at_host_of(token.server, token.enrolment);
  host_of(token.enrolment);
  return token;
}

std::string join(const JoinOptions& options) {
  const auto token = decode_token(token_text(options));
  Access wanted{options.server.empty() ? token.server : options.server, token.name, {}};
  wanted.trust.identity = options.identity.empty() ? default_identity() : options.identity;
  host_of(wanted.server);
  log_name = token.name;
  // With another host for the server than the token says, the enrolment is there too.
  auto enrolment = options.server.empty() ? token.enrolment : at_host_of(wanted.server, token.enrolment);
  if (!options.enrolment.empty()) enrolment = options.enrolment;
  host_of(enrolment);
  // One folder is one site of one federation; it may join that again, with the same key.
  const auto folder = wanted.trust.identity.string();
  const auto known = membership_in(folder);
  if (known && (known->name != wanted.name || known->server != wanted.server)) {
    wrong(folder + " is the identity of " + known->name + " at " + known->server + ": give another --identity");
  }
  const auto last_day = become_member(token, wanted, enrolment);
  return "joined as " + token.name + "; the certificate is valid until " + last_day +
         " and renews itself.\nIts key is in " + folder + ". Take part with: fedstream-client run --identity " +
         folder + " --data FILE";
}

double seconds_to_look(const Trust& trust) {
  if (trust.identity.empty()) return INFINITY;
  return facts_of(credentials_of(trust)->certificate).seconds_to_look(std::time(nullptr)) + 1;  // in whole seconds
}

bool renew_if_due(const Trust& trust, const std::shared_ptr<grpc::Channel>& channel) {
  if (trust.identity.empty()) return false;
  auto own = *credentials_of(trust);
  const auto before = facts_of(own.certificate);
  if (!before.is_due(std::time(nullptr))) return false;
  Effort effort;
  try {
    v1::RenewCertificateResponse answer;
    require_ok(v1::CertificateService::NewStub(channel)->RenewCertificate(effort.call(kAskSeconds), {}, &answer));
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
