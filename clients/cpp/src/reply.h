/// What to answer to an offer: a pure decision from the offer, the site's limits and what the site has measured.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace fedstream::client {

/// 0 is no limit.
struct SiteLimits {
  std::uint32_t max_epochs = 0;
  double max_seconds = 0;
};

/// What is known when an offer comes. `epoch_seconds` 0 is not known yet.
struct Known {
  double epoch_seconds = 0;
  double transfer_seconds = 0;
  bool more_time_refused = false;
};

/// `decline` says why not; else `epochs` and `seconds` are what to ask for, 0 to leave the offer's; with neither the
/// offer is accepted as it stands.
struct Reply {
  std::string decline = "";
  std::uint32_t epochs = 0;
  double seconds = 0;
  std::string reason = "";

  bool accepts() const { return decline.empty() && epochs == 0 && seconds == 0; }
};

/// @param epochs of the offer's plan @param time_remaining seconds until the round closes
Reply reply(std::uint32_t epochs, double time_remaining, const SiteLimits& limits, const Known& known);

}  // namespace fedstream::client
