#include "options.h"

#include <getopt.h>
#include <unistd.h>

#include <cctype>
#include <cmath>
#include <iostream>
#include <iterator>
#include <map>

#include "address.h"
#include "errors.h"
#include "limits.h"

namespace fedstream::client {

const char kHelp[] = R"(Usage: fedstream-client join [HOST:PORT] --token TOKEN
       fedstream-client run --data FILE

join: join a federation, once, with the token that its coordinator has sent. The private key is made here and never
leaves this machine. If it breaks off, run it again with the same token.

  HOST:PORT                 address of the server [as the token says]
  --token TOKEN             the token; - to read it from standard input, where no other user sees it
  --enrolment HOST:PORT     where to join, if that is elsewhere than the token says
  --identity DIR            folder for this site's key [~/.local/state/fedstream/identity]

run: take part in a federation that learns brain_mri_head, until it ends. Only weights, counts and metrics are sent. It
reconnects by itself, and never repeats a finished training.

  --data FILE               features file, as `fedclient features` writes it (FILE.features)
  --identity DIR            what joining left [~/.local/state/fedstream/identity]
  --server HOST:PORT        address of the server [the one that was joined]
  --name SITE               this site's name, unique in the federation [the one that was joined, or the host's]
  --certificate FILE, --key FILE, --server-ca FILE
                            this site's certificate and key, and whom to trust (PEM), in place of --identity
  --fingerprint SHA256:HEX  the server's fingerprint, for one that asks for no certificates
  --plaintext               no TLS; only for a server on this machine
  --max-epochs N            most epochs per round allowed here [no limit]
  --max-seconds S           most seconds of training per round [no limit]
  --out DIR                 folder for the final model [runs/SITE]
  --state-dir DIR           folder for what must survive a restart [~/.local/state/fedstream-cpp/SITE]
  --give-up-after SECONDS   end after so long without the server [never]

Exit codes: 0 the federation finished; 1 defect; 2 wrong option; 3 unusable data; 4 declined; 5 unreachable;
6 untrusted; 7 training failed; 8 another client of the same name took over; 130 and 143 stopped by a signal.
)";

namespace {

[[noreturn]] void wrong(const std::string& message) { throw Stop(Exit::kBadConfiguration, message); }

struct Words {
  std::map<std::string, std::string> options;
  std::vector<std::string> others;

  std::string get(const std::string& name, const std::string& otherwise = "") const {
    const auto found = options.find(name);
    return found == options.end() ? otherwise : found->second;
  }

  /// 0 if it was not given.
  double number(const std::string& name) const {
    const auto text = get(name, "0");
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (*end != '\0' || text.empty() || !std::isfinite(value) || value < 0) {
      wrong("--" + name + " is a number, not " + text);
    }
    return value;
  }
};

/// @param names options with an argument @param flags options without
Words parse(const std::vector<std::string>& words, const std::vector<const char*>& names,
            const std::vector<const char*>& flags) {
  std::vector<option> known;
  for (const char* name : names) known.push_back({name, required_argument, nullptr, 0});
  for (const char* flag : flags) known.push_back({flag, no_argument, nullptr, 0});
  known.push_back({nullptr, 0, nullptr, 0});
  std::vector<char*> arguments;
  std::string program = "fedstream-client";
  arguments.push_back(program.data());
  for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));  // getopt does not write to them
  arguments.push_back(nullptr);
  Words parsed;
  optind = 0;
  opterr = 0;
  for (int at = 0, found = 0;;) {
    found = getopt_long(int(arguments.size()) - 1, arguments.data(), "", known.data(), &at);
    if (found == -1) break;
    if (found != 0)
      wrong(std::string(arguments[std::size_t(optind) - 1]) + " is no option, or lacks its value; see --help");
    parsed.options[known[std::size_t(at)].name] = optarg == nullptr ? "yes" : optarg;
  }
  parsed.others.assign(arguments.begin() + optind, arguments.end() - 1);
  return parsed;
}

std::string host_name() {
  char name[65] = "";
  gethostname(name, sizeof name - 1);
  for (char* c = name; *c != '\0'; ++c) {
    if (!limits::is_client_name(std::string("a") + *c)) *c = '-';
  }
  return name;
}

void require_address(const std::string& address) {
  try {
    split_address(address);
  } catch (const std::runtime_error& error) {
    wrong(error.what());
  }
}

bool is_loopback(const std::string& host) { return host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0; }

fs::path default_identity() { return state_home() / "fedstream" / "identity"; }

/// Whom to trust: exactly one way, and what joining left if none is named.
Trust trust_of(const Words& words) {
  Trust trust;
  trust.plaintext = !words.get("plaintext").empty();
  trust.fingerprint = words.get("fingerprint");
  trust.identity = words.get("identity");
  trust.certificate = words.get("certificate");
  trust.key = words.get("key");
  trust.server_ca = words.get("server-ca");
  const int ways = trust.plaintext + !trust.fingerprint.empty() + !trust.identity.empty() + !trust.server_ca.empty();
  if (ways > 1)
    wrong("give one of --identity, --server-ca (with --certificate and --key), --fingerprint and --plaintext");
  if (trust.certificate.empty() != trust.key.empty()) wrong("--certificate and --key come together");
  if (!trust.key.empty() && trust.server_ca.empty()) wrong("--certificate and --key come with --server-ca");
  const auto& print = trust.fingerprint;
  if (!print.empty() && (print.size() != 71 || print.rfind("sha256:", 0) != 0 ||
                         print.find_first_not_of("0123456789abcdefABCDEF", 7) != std::string::npos)) {
    wrong("a fingerprint is sha256: and 64 hexadecimal digits, as in the join command that the server prints");
  }
  if (ways == 0) trust.identity = default_identity();
  return trust;
}

}  // namespace

RunConfig read_run(const std::vector<std::string>& list) {
  const auto words = parse(list,
                           {"server", "fingerprint", "server-ca", "certificate", "key", "identity", "name", "data",
                            "max-epochs", "max-seconds", "out", "state-dir", "give-up-after"},
                           {"plaintext"});
  if (!words.others.empty()) wrong(words.others[0] + " is no option; see --help");
  RunConfig config;
  config.trust = trust_of(words);
  config.server = words.get("server");
  config.name = words.get("name");
  if (!config.trust.identity.empty()) {
    const auto joined = IdentityFolder(config.trust.identity).membership();
    if (!joined) {
      wrong("nothing was joined in " + config.trust.identity.string() +
            ": join first with the coordinator's token, or say how to trust the server; see --help");
    }
    if (config.server.empty()) config.server = joined->server();
    if (config.name.empty()) config.name = joined->name();
  }
  if (config.server.empty()) wrong("add --server HOST:PORT, such as fl.example.org:8443");
  require_address(config.server);
  if (config.name.empty()) config.name = host_name();
  if (!limits::is_client_name(config.name)) {
    wrong("a name has 1 to 64 characters of a-z A-Z 0-9 . _ -, a letter or digit first");
  }
  if (config.trust.plaintext && !is_loopback(split_address(config.server).host)) {
    wrong("--plaintext is for a server on this machine only");
  }
  config.data = words.get("data");
  if (config.data.empty()) wrong("add --data FILE: a features file, as `fedclient features` writes it");
  config.out = words.get("out", (fs::path("runs") / config.name).string());
  config.state_dir = words.get("state-dir", (state_home() / "fedstream-cpp" / config.name).string());
  config.limits.max_epochs = std::uint32_t(std::min(words.number("max-epochs"), 4e9));
  config.limits.max_seconds = words.number("max-seconds");
  if (!words.get("give-up-after").empty()) config.give_up_after_seconds = words.number("give-up-after");
  return config;
}

JoinConfig read_join(const std::vector<std::string>& list) {
  const auto words = parse(list, {"token", "enrolment", "identity"}, {});
  if (words.others.size() > 1) wrong("give one HOST:PORT, or none");
  JoinConfig config;
  config.token = words.get("token");
  if (config.token.empty()) wrong("give the token with --token");
  if (config.token == "-") config.token.assign(std::istreambuf_iterator<char>(std::cin), {});
  config.server = words.others.empty() ? "" : words.others[0];
  config.enrolment = words.get("enrolment");
  config.identity = words.get("identity", default_identity().string());
  return config;
}

}  // namespace fedstream::client
