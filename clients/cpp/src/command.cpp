#include "command.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <iostream>

#include "client.h"
#include "join.h"

namespace fedstream::client {
namespace {

/// Waits for SIGINT and SIGTERM in a thread of its own; then the client says good-bye, and the process ends. To be made
/// before any other thread, since threads inherit which signals are held back.
class Signals {
 public:
  Signals() {
    sigemptyset(&awaited_);
    for (const int number : {SIGINT, SIGTERM, SIGUSR1}) sigaddset(&awaited_, number);
    pthread_sigmask(SIG_BLOCK, &awaited_, nullptr);
    signal(SIGPIPE, SIG_IGN);  // a connection that was cut is an error of its call
  }
  ~Signals() {
    if (!thread_.joinable()) return;
    pthread_kill(thread_.native_handle(), SIGUSR1);  // wakes the thread up, to end
    thread_.join();
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  void hand_to(Client& client) {
    thread_ = std::thread([this, &client] {
      int number = 0;
      sigwait(&awaited_, &number);
      if (number == SIGUSR1) return;
      client.leave("stopped by its operator");
      _exit(128 + number);
    });
  }

 private:
  sigset_t awaited_{};
  std::thread thread_;
};

std::string take_part(const std::vector<std::string>& words, const Trainer& trainer) {
  Signals signals;
  Client client(read_run(words), trainer);
  signals.hand_to(client);
  return client.run();
}

std::string join_federation(const std::vector<std::string>& words) {
  const auto config = read_join(words);
  JoinToken token;
  try {
    token = decode_token(config.token);
  } catch (const std::runtime_error& error) {
    throw Stop(Exit::kBadConfiguration, error.what());
  }
  const auto joined = join(token, config.server, config.enrolment, IdentityFolder(config.identity));
  return joined + ".\nIts key is in " + config.identity.string() +
         ". Take part with: fedstream-client run --identity " + config.identity.string() + " --data FILE";
}

std::string carry_out(const std::vector<std::string>& words, const Trainer& trainer) {
  const auto command = words.empty() ? "" : words[0];
  const bool asks_for_help = std::find(words.begin(), words.end(), "--help") != words.end();
  if (asks_for_help) return kHelp;
  const std::vector<std::string> rest(words.begin() + (words.empty() ? 0 : 1), words.end());
  if (command == "run") return take_part(rest, trainer);
  if (command == "join") return join_federation(rest);
  throw Stop(Exit::kBadConfiguration, "say `join` or `run` first; --help tells more");
}

}  // namespace

int run_command(int argc, char** argv, const Trainer& trainer) {
  try {
    std::cout << carry_out({argv + 1, argv + argc}, trainer) << std::endl;
    return int(Exit::kFinished);
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
