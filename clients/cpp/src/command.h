/// 8. The command: its words, and the exit codes.
#pragma once

#include <sys/stat.h>

#include <iostream>

#include "client.h"

namespace fedstream::client {

inline constexpr char kHelp[] = R"(Usage: fedstream-client join [HOST:PORT] --token TOKEN
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

/// @param list the words after `run` @throws Stop
inline RunConfig read_run(const std::vector<std::string>& list) {
  const Words words(
      list,
      {"--server", "--name", "--plaintext", "--fingerprint", "--identity", "--certificate", "--key", "--server-ca",
       "--data", "--max-epochs", "--max-seconds", "--out", "--state-dir", "--give-up-after"},
      "--plaintext");
  if (words.get("--data").empty()) wrong("add --data FILE: a features file, as `fedclient features` writes it");
  const auto access = read_access(words);
  return {access,
          words.get("--data"),
          words.get("--state-dir", state_home() / "fedstream-cpp" / access.name),
          words.get("--out", "runs/" + access.name),
          Pace{std::min(words.number("--max-epochs", 0), 4e9), words.number("--max-seconds", 0)},
          {words.number("--give-up-after", INFINITY)}};
}

/// @returns the exit code
inline int run_command(int argc, char** argv, const OpenTask& open_task) {
  signal(SIGPIPE, SIG_IGN);  // a connection that was cut is an error of its call
  umask(077);
  std::vector<std::string> words(argv + 1, argv + argc);
  const auto command = words.empty() ? "" : words[0];
  try {
    if (std::count(words.begin(), words.end(), "--help") != 0) return std::cout << kHelp, 0;
    if (!words.empty()) words.erase(words.begin());
    if (command == "run") return std::cout << Client(read_run(words), open_task).run() << std::endl, 0;
    if (command == "join") return std::cout << join(words) << std::endl, 0;
    wrong("say `join` or `run` first; --help tells more");
  } catch (const Stop& stop) {
    std::cerr << "fedstream-client: " << stop.what() << std::endl;
    return int(stop.exit);
  } catch (const std::exception& error) {
    std::cerr << "fedstream-client: " << error.what() << ". This is a defect; please report it with the log"
              << std::endl;
    return int(Exit::kDefect);
  }
}

}  // namespace fedstream::client
