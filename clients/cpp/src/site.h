/// What the work on an offer is done with.
#pragma once

#include <atomic>

#include "connection.h"
#include "log.h"
#include "store.h"
#include "training.h"

namespace fedstream::client {

/// What this site has measured; the work writes it, the session reads it.
struct Experience {
  std::atomic<double> epoch_seconds{0};  // 0 before the first fine-tune
  std::atomic<double> transfer_seconds{0};
  std::atomic<bool> more_time_refused{false};
};

struct Site {
  Connection& connection;
  const Log& log;
  Store store;
  std::unique_ptr<Training> training;
  Experience experience;
};

/// The terms of the latest welcome, in bytes.
struct Terms {
  std::uint64_t max_chunk_bytes;
  std::uint64_t window_bytes;
};

/// Told how many bytes are there, and how many there are in all.
using OnBytes = std::function<void(std::uint64_t done, std::uint64_t total)>;

}  // namespace fedstream::client
