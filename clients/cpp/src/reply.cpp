#include "reply.h"

#include <algorithm>
#include <cmath>

namespace fedstream::client {
namespace {

/// Epochs vary with what else a machine does; asking for a fifth more than was measured costs the round little.
constexpr double kSafety = 1.2;

}  // namespace

Reply reply(std::uint32_t offered, double time_remaining, const SiteLimits& limits, const Known& known) {
  double epochs = offered;
  std::string reasons;
  const auto give_reason = [&](const std::string& reason) { reasons += (reasons.empty() ? "" : "; ") + reason; };
  const auto lower = [&](double most, const std::string& reason) {
    if (most >= epochs) return;
    epochs = std::max(most, 0.0);
    give_reason(reason);
  };
  const auto asking = [&](double seconds) {
    return Reply{"", epochs == offered ? 0 : std::uint32_t(epochs), seconds, reasons};
  };
  if (limits.max_epochs != 0) {
    lower(limits.max_epochs, "this site allows at most " + std::to_string(limits.max_epochs) + " epochs a round");
  }
  if (known.epoch_seconds <= 0) return asking(0);
  if (limits.max_seconds > 0) {
    lower(std::floor(limits.max_seconds / known.epoch_seconds), "this site limits the time of training in a round");
  }
  if (epochs < 1) return {"one epoch takes longer than this site allows"};
  const double needed = epochs * known.epoch_seconds * kSafety + known.transfer_seconds;
  if (needed <= time_remaining) return asking(0);
  if (!known.more_time_refused) {
    give_reason("the epochs take about " + std::to_string(std::lround(needed)) + " s here");
    return asking(needed);
  }
  // The server would not wait longer the last time: fewer epochs in time are worth more than another withdrawal.
  lower(std::floor((time_remaining - known.transfer_seconds) / (known.epoch_seconds * kSafety)),
        "fewer epochs fit the time");
  return epochs < 1 ? Reply{"not even one epoch fits the time"} : asking(0);
}

}  // namespace fedstream::client
