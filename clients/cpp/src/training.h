/// What the client asks of a task, so that another model is another file: a `Trainer` opens the site's data, and the
/// `Training` that it gives fine-tunes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cancel.h"
#include "durable.h"
#include "model.h"

namespace fedstream::client {

/// Measured values by name; without one where it is not defined.
using Metrics = std::map<std::string, std::optional<double>>;

/// As it travels; a value that is not finite goes without value.
std::vector<v1::Metric> write_metrics(const Metrics& metrics);

/// How far a fine-tune is, after an epoch.
struct EpochReport {
  std::uint32_t epoch;
  std::uint32_t epochs;
  Metrics metrics;
};

/// A fine-tune that has ended. `tensors` are the values of each tensor of the schema, in its order.
struct Tuned {
  std::vector<std::string> tensors;
  std::uint64_t num_examples;
  Metrics metrics;
  std::uint32_t epochs;
};

class Training {
 public:
  virtual ~Training() = default;

  virtual const Schema& schema() const = 0;
  virtual const v1::TaskMeaning& meaning() const = 0;
  virtual std::uint64_t num_examples() const = 0;
  virtual bool synthetic() const = 0;

  /// The same base, plan and data give the same bytes.
  /// @param base the values of each tensor of the schema
  /// @throws Cancelled
  virtual Tuned fine_tune(const std::vector<std::string>& base, const v1::Plan& plan,
                          const std::function<void(const EpochReport&)>& report, const Cancel& cancel) const = 0;
};

using Settings = std::map<std::string, std::string>;

struct Trainer {
  std::string task_name;
  /// @throws Stop the data cannot be used
  std::function<std::unique_ptr<Training>(const Settings& settings, const fs::path& data)> open;
};

}  // namespace fedstream::client
