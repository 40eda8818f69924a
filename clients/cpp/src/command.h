/// 7. The command: its words, and the exit codes.
#pragma once

#include <absl/strings/ascii.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <iostream>

#include "client.h"

namespace fedstream::client {

inline void add_run(CLI::App& command, RunConfig& config) {
  auto& [server, name, trust] = config.access;
  command.add_option("--data", config.data, "features file, as `fedclient features` writes it")->required();
  command.add_option("--server", server, "HOST:PORT of the server [the one that was joined]");
  command.add_option("--name", name, "this site's name, unique in the federation [the one that was joined]");
  command.add_option("--max-epochs", config.max_epochs, "most epochs per round allowed here [no limit]");
  command.add_option("--out", config.out, "folder for the final model [runs/SITE]");
  command.add_option("--state-dir", config.state_dir,
                     "folder for what must survive a restart [~/.local/state/fedstream-cpp/HOST_PORT/SITE]");
  auto& ways = *command.add_option_group("trust", "One way to trust the server")->require_option(0, 1);
  ways.add_option("--identity", trust.identity, "folder that `join` has left [~/.local/state/fedstream/identity]");
  auto* authority = ways.add_option("--server-ca", trust.server_ca, "the authority's certificate (PEM)");
  ways.add_option("--fingerprint", trust.fingerprint, "sha256:HEX, of a server that asks for no certificates");
  ways.add_flag("--plaintext", trust.plaintext, "no TLS; only for a server on this machine");
  auto* certificate = command.add_option("--certificate", trust.certificate, "this site's certificate (PEM)");
  certificate->needs(authority, command.add_option("--key", trust.key, "its key (PEM)")->needs(certificate));
}

/// With what its options leave out. @throws Stop
inline RunConfig complete(RunConfig config) {
  config.access = complete(config.access);
  if (config.out.empty()) config.out = fs::path("runs") / config.access.name;
  if (config.state_dir.empty()) {  // by the server too: federations may know different sites by the same name
    auto server = joined_server(config.access);
    const auto may_stand = [](unsigned char c) { return absl::ascii_isalnum(c) || c == '.' || c == '-'; };
    std::replace_if(server.begin(), server.end(), std::not_fn(may_stand), '_');
    const auto all = state_home() / "fedstream-cpp";
    config.state_dir = all / server / config.access.name;
    config.former_state_dir = all / config.access.name;
  }
  return config;
}

/// @returns the exit code
inline int run_command(int argc, char** argv, const OpenTask& open_task) {
  std::signal(SIGPIPE, SIG_IGN);  // a connection that was cut is an error of its call
  umask(077);
  CLI::App app("Take part in a federation that learns brain_mri_head. Only weights, counts and metrics are sent.");
  app.footer(
      "Exit codes: 0 the federation finished; 1 defect; 2 wrong option; 3 unusable data; 4 declined; 5 unreachable;\n"
      "6 untrusted; 7 training failed several times in a row; 8 another client of the same name took over;\n"
      "129 stopped by SIGHUP, as when its terminal is closed; 130 by Ctrl-C; 143 by SIGTERM.");
  app.require_subcommand(1);
  JoinOptions options;
  auto& joining = *app.add_subcommand("join", "Join a federation, once, with the token that its coordinator has sent.");
  joining.footer(
      "A token on the command line is seen by other users of this machine: `--token -` and `--token-file` are not.");
  joining.add_option("address", options.server, "HOST:PORT of the server [as the token says]");
  joining.add_option("--token", options.token, "the token; - to read it from standard input");
  joining.add_option("--token-file", options.token_file,
                     "a file with the token, or with all that fedserver invite printed");
  joining.add_option("--enrolment", options.enrolment, "HOST:PORT where to join [as the token says]");
  joining.add_option("--identity", options.identity, "folder for the key [~/.local/state/fedstream/identity]");
  RunConfig config;
  add_run(*app.add_subcommand("run", "Take part until the federation ends."), config);
  try {
    app.parse(argc, argv);
    std::cout << (joining.parsed() ? join(options) : Client(complete(config), open_task).run()) << std::endl;
    return 0;
  } catch (const CLI::ParseError& words) {
    return app.exit(words) == 0 ? 0 : int(Exit::kBadOption);
  } catch (const std::exception& error) {
    std::cerr << "fedstream-client: " << error.what() << std::endl;
    const auto* stop = dynamic_cast<const Stop*>(&error);
    return int(stop != nullptr ? stop->exit : Exit::kDefect);
  }
}

}  // namespace fedstream::client
