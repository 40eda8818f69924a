/// 5. What the client asks of a task. The one that there is stands in ../task.
#pragma once

#include <functional>

#include "folder.h"

namespace fedstream::client {

using Values = google::protobuf::RepeatedPtrField<std::string>;

/// A fine-tune that has ended: the values of each tensor of the schema, in its order, and what the site says of them.
struct Tuned {
  std::vector<std::string> values;
  v1::UpdateHeader header;
};
using Report = std::function<void(const v1::Progress&)>;

/// What the client asks of a task, so that another model is another file. The same base, plan and data give the same
/// bytes; `fine_tune` throws Dropped when it is cancelled.
struct Task {
  std::string name;
  Schema schema;
  v1::TaskMeaning meaning;
  std::uint64_t num_examples;
  bool synthetic;
  std::function<Tuned(const Values& base, const v1::Plan& plan, const Report& report, const Cancel& cancel)> fine_tune;
};
using Settings = std::map<std::string, std::string>;
/// Opens the site's data. @throws Stop the data cannot be used
using OpenTask = std::function<Task(const Settings& settings, const fs::path& data)>;

}  // namespace fedstream::client
