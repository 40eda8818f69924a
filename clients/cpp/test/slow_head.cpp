/// The command with a task for tests: the same fine-tune after a wait of `SLOW_HEAD_SECONDS`, in which a test may do
/// its worst; with `SLOW_HEAD_FAILS` it fails then.
#include <cstdlib>

#include "../src/command.h"
#include "../task/head.h"

int main(int argc, char** argv) {
  using namespace fedstream::client;
  return run_command(argc, argv, [](const Settings& settings, const fs::path& data) {
    auto task = open_head(settings, data);
    task.fine_tune = [tune = task.fine_tune](const auto& base, const auto& plan, const auto& report,
                                             const auto& effort) {
      fedstream::v1::Progress progress;
      progress.set_phase(fedstream::v1::PHASE_TRAINING);
      report(progress);
      const char* seconds = std::getenv("SLOW_HEAD_SECONDS");
      effort.sleep(seconds == nullptr ? 3 : std::strtod(seconds, nullptr));
      if (std::getenv("SLOW_HEAD_FAILS") != nullptr) throw std::runtime_error("broken");
      return tune(base, plan, report, effort);
    };
    return task;
  });
}
