/// The command with a task for tests: the same fine-tune after a wait of `SLOW_HEAD_SECONDS`, in which a test may do
/// its worst.
#include <cstdlib>

#include "../src/command.h"
#include "../src/train_head.h"

namespace {

using namespace fedstream::client;

class SlowTraining final : public Training {
 public:
  explicit SlowTraining(std::unique_ptr<Training> head) : head_(std::move(head)) {}

  const Schema& schema() const override { return head_->schema(); }
  const fedstream::v1::TaskMeaning& meaning() const override { return head_->meaning(); }
  std::uint64_t num_examples() const override { return head_->num_examples(); }
  bool synthetic() const override { return head_->synthetic(); }

  Tuned fine_tune(const std::vector<std::string>& base, const fedstream::v1::Plan& plan,
                  const std::function<void(const EpochReport&)>& report, const Cancel& cancel) const override {
    report({1, plan.epochs(), {}});
    const char* seconds = std::getenv("SLOW_HEAD_SECONDS");
    cancel.sleep(seconds == nullptr ? 3 : std::strtod(seconds, nullptr));
    return head_->fine_tune(base, plan, report, cancel);
  }

 private:
  std::unique_ptr<Training> head_;
};

}  // namespace

int main(int argc, char** argv) {
  auto trainer = head_trainer();
  trainer.open = [open = trainer.open](const Settings& settings, const fs::path& data) -> std::unique_ptr<Training> {
    return std::make_unique<SlowTraining>(open(settings, data));
  };
  return run_command(argc, argv, trainer);
}
