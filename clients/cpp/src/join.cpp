#include "join.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "address.h"
#include "backoff.h"
#include "certificates.h"
#include "digest.h"
#include "limits.h"

namespace fedstream::client {
namespace {

constexpr std::size_t kIdBytes = 8, kSecretBytes = 16, kFingerprintBytes = 32, kCheckBytes = 4;
constexpr std::size_t kTextAt = kIdBytes + kSecretBytes + kFingerprintBytes;
constexpr std::size_t kMaxTokenBytes = 2'048;
constexpr char kPrefix[] = "fsj1_";
constexpr char kDamaged[] = "the join token is damaged: copy it again, whole";

/// Base64url without `=`.
std::string decode_base64url(std::string_view text) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  if (text.size() % 4 == 1) throw std::runtime_error(kDamaged);
  std::string data;
  unsigned bits = 0;
  int num_bits = 0;
  for (const char c : text) {
    const char* digit = c == '\0' ? nullptr : std::strchr(kDigits, c);
    if (digit == nullptr) throw std::runtime_error(kDamaged);
    bits = (bits << 6) | unsigned(digit - kDigits);
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    data += char((bits >> num_bits) & 0xff);
  }
  return data;
}

v1::EnrolResponse ask(const std::string& address, const JoinToken& token, const v1::EnrolRequest& request) {
  Trust trust;
  trust.fingerprint = token.fingerprint;
  // Nothing but a TLS handshake goes out before the certificate is known to be the token's (R-JOIN-2).
  const auto channel = make_channel(address, look_at(address, trust), true);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kQuick);
  v1::EnrolResponse answer;
  require_ok(v1::EnrolmentService::NewStub(channel)->Enrol(&context, request, &answer));
  return answer;
}

v1::EnrolResponse until_answered(const std::string& address, const JoinToken& token, const v1::EnrolRequest& request) {
  Patience patience;
  patience.give_up_after_seconds = 30;
  try {
    const auto once = [&] { return ask(address, token, request); };
    return until_done(
        once, [] { return 0; }, patience, "joining", Log(token.name), Cancel());
  } catch (const Trouble& error) {
    throw Stop(Exit::kUnreachable,
               "cannot join at " + address + ": " + error.what() + ". Nothing is lost: try again with the same token");
  } catch (const Refusal& error) {
    throw Stop(Exit::kUntrusted, "the server refused (" + error.reason + "): " + error.what());
  }
}

/// One folder is one site of one federation; it may join that again, with the same key.
void require_room(const IdentityFolder& folder, const Membership& wanted) {
  const auto known = folder.membership();
  if (!known || (known->name() == wanted.name() && known->server() == wanted.server())) return;
  throw Stop(Exit::kBadConfiguration, folder.folder.string() + " is the identity of " + known->name() + " at " +
                                          known->server() +
                                          ": give another --identity, or remove it if it is out of use");
}

}  // namespace

JoinToken decode_token(std::string text) {
  text.erase(std::remove_if(text.begin(), text.end(), [](unsigned char c) { return std::isspace(c); }), text.end());
  if (text.compare(0, std::strlen(kPrefix), kPrefix) != 0 || text.size() > kMaxTokenBytes) {
    throw std::runtime_error("this is no join token: one begins with fsj1_, as `fedserver invite` prints it");
  }
  auto contents = decode_base64url(std::string_view(text).substr(std::strlen(kPrefix)));
  if (contents.size() <= kTextAt + kCheckBytes) throw std::runtime_error(kDamaged);
  const auto check = contents.substr(contents.size() - kCheckBytes);
  contents.resize(contents.size() - kCheckBytes);
  if (sha256(contents).substr(0, kCheckBytes) != check) throw std::runtime_error(kDamaged);
  JoinToken token;
  token.id = contents.substr(0, kIdBytes);
  token.secret = contents.substr(kIdBytes, kSecretBytes);
  token.fingerprint = "sha256:" + hex(contents.substr(kIdBytes + kSecretBytes, kFingerprintBytes));
  std::istringstream lines(contents.substr(kTextAt));
  std::string more;
  std::getline(lines, token.name);
  std::getline(lines, token.server);
  std::getline(lines, token.enrolment);
  if (std::getline(lines, more) || !limits::is_client_name(token.name))
    throw std::runtime_error("the token names no site");
  const auto server = split_address(token.server);
  if (token.enrolment.rfind(':', 0) == 0) {
    token.enrolment = shown_address({server.host, split_address("host" + token.enrolment).port});
  }
  split_address(token.enrolment);
  return token;
}

std::string join(const JoinToken& token, std::string server, std::string enrolment, const IdentityFolder& folder) {
  Membership membership;
  try {
    if (!server.empty() && enrolment.empty()) {
      enrolment = shown_address({split_address(server).host, split_address(token.enrolment).port});
    }
    if (server.empty()) server = token.server;
    if (enrolment.empty()) enrolment = token.enrolment;
    split_address(server);
    split_address(enrolment);
  } catch (const std::runtime_error& error) {
    throw Stop(Exit::kBadConfiguration, error.what());
  }
  membership.set_name(token.name);
  membership.set_server(server);
  require_room(folder, membership);
  try {
    Credentials own{folder.key(), "", ""};
    v1::EnrolRequest request;
    request.set_client_name(token.name);
    request.set_token_id(token.id);
    request.set_token_secret(token.secret);
    request.set_certificate_request(make_request(own.key, token.name));
    const auto answer = until_answered(enrolment, token, request);
    own.certificate = der_to_pem(answer.certificate());
    own.authority = der_to_pem(answer.authority());
    check_answer(token.name, own);
    folder.keep(membership, own);
    const auto expires = facts_of(read_certificate(own.certificate).get()).expires;
    return "joined as " + token.name + "; the certificate is valid until " + day_of(expires) + " and renews itself";
  } catch (const Stop&) {
    throw;
  } catch (const fs::filesystem_error& error) {
    throw Stop(Exit::kBadConfiguration, std::string("the identity cannot be kept: ") + error.what());
  } catch (const std::runtime_error& error) {
    throw Stop(Exit::kDefect, std::string("the server's answer or this site's key cannot be used: ") + error.what());
  }
}

bool renew_if_due(const IdentityFolder& folder, Connection& connection, const Log& log) {
  auto own = folder.credentials();
  const auto before = facts_of(read_certificate(own.certificate).get());
  if (!before.is_due(std::time(nullptr))) return false;
  try {
    own.certificate = der_to_pem(connection.renew_certificate().certificate());
    check_answer(before.name, own);
    folder.keep_certificate(own.certificate);
  } catch (const std::runtime_error& error) {
    log.warning("the certificate could not be renewed",
                {{"because", error.what()}, {"expires", day_of(before.expires)}});
    return false;
  }
  const auto after = facts_of(read_certificate(own.certificate).get());
  log.info("certificate renewed", {{"expires", day_of(after.expires)}});
  return after.fingerprint != before.fingerprint;
}

}  // namespace fedstream::client
