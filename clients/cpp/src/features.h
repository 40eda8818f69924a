/// The plain form of a features file, as `fedclient features` writes it; numbers are little-endian:
///
///     8  `FSFEAT01`          4  training examples    4  validation examples    4  d    4  1 for generated data
///     4  m                   m  the task's meaning   n  labels, uint8          n * d * 4  features, float32
#pragma once

#include <string>
#include <vector>

#include "durable.h"
#include "fedstream/v1/common.pb.h"

namespace fedstream::client {

/// Examples row after row; `x` has `num() * width` numbers.
struct Examples {
  std::vector<float> x;
  std::vector<std::uint8_t> y;
  std::size_t width = 0;

  std::size_t num() const { return y.size(); }
  const float* row(std::size_t index) const { return x.data() + index * width; }
};

struct Features {
  Examples train;
  Examples val;
  v1::TaskMeaning meaning;
  bool generated = false;
};

/// @param file or a folder with `features.features`
/// @throws Stop it is not there or not sound
Features read_features(const fs::path& file);

/// @throws std::runtime_error the content is not sound
Features parse_features(const std::string& content);

}  // namespace fedstream::client
