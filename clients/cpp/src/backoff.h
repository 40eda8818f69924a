/// Coming back after an error: exponential back-off with jitter, begun anew after every progress (R-TIM-5, R-TIM-6).
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>
#include <string>

#include "call.h"
#include "log.h"

namespace fedstream::client {

struct Patience {
  double first_seconds = 0.5;
  double longest_seconds = 30;
  /// How long to go on without any progress; for ever if there is none.
  std::optional<double> give_up_after_seconds;
};

/// How long to wait before the next try; `random` is 0 to 1. Whoever was cut off together should not come back
/// together.
inline double wait_seconds(int tries, const Patience& patience, double random) {
  return std::min(patience.first_seconds * std::pow(2.0, std::min(tries, 30)), patience.longest_seconds) +
         patience.first_seconds * random;
}

/// Try `once`, which resumes where the last try got to, until it returns. Trouble and LIMIT_EXCEEDED are waited for;
/// any other refusal is the server's last word.
/// @param how_far grows with every progress
template <class Once, class HowFar>
auto until_done(Once once, HowFar how_far, const Patience& patience, const std::string& doing, const Log& log,
                const Cancel& cancel) {
  std::minstd_rand random(std::random_device{}());
  auto mark = how_far();
  auto since = Clock::now();
  for (int tries = 0;; ++tries) {
    cancel.check();
    double at_least = 0;
    std::string because;
    try {
      return once();
    } catch (const Trouble& error) {
      because = error.what();
    } catch (const Refusal& error) {
      if (error.reason != "LIMIT_EXCEEDED") throw;
      at_least = error.retry_seconds;
      because = error.what();
    }
    cancel.check();
    if (how_far() > mark) {
      mark = how_far();
      tries = 0;
      since = Clock::now();
    }
    const std::chrono::duration<double> waited = Clock::now() - since;
    if (waited.count() > patience.give_up_after_seconds.value_or(INFINITY)) throw Trouble(because);
    log.warning("trying again", {{"doing", doing}, {"because", because}});
    const double jitter = std::uniform_real_distribution<double>(0, 1)(random);
    cancel.sleep(std::max(at_least, wait_seconds(tries, patience, jitter)));
  }
}

}  // namespace fedstream::client
