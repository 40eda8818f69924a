#include "features.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "errors.h"
#include "model.h"

// Features, weights and tensors are copied as they lie in memory.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "this client is for little-endian machines");

namespace fedstream::client {
namespace {

constexpr char kMagic[] = "FSFEAT01";
constexpr std::size_t kHeaderBytes = 28;

std::uint64_t number_at(const std::string& content, std::size_t at) {
  std::uint32_t value = 0;
  std::memcpy(&value, content.data() + at, sizeof value);
  return value;
}

Examples part_of(const char* labels, const char* features, std::size_t from, std::size_t num, std::size_t width) {
  Examples part;
  part.width = width;
  part.y.assign(labels + from, labels + from + num);
  part.x.resize(num * width);
  if (!part.x.empty()) std::memcpy(part.x.data(), features + from * width * 4, part.x.size() * 4);
  const bool is_sound = std::all_of(part.y.begin(), part.y.end(), [](std::uint8_t label) { return label <= 1; }) &&
                        std::all_of(part.x.begin(), part.x.end(), [](float value) { return std::isfinite(value); });
  if (!is_sound) throw std::runtime_error("a label or a feature is out of bounds");
  return part;
}

/// One example in so many validates where a file has none for it and twice as many examples.
constexpr std::size_t kValEvery = 7;

Examples chosen_of(const Examples& all, const std::vector<bool>& in_val, bool is_val) {
  Examples part;
  part.width = all.width;
  for (std::size_t index = 0; index < all.num(); ++index) {
    if (in_val[index] != is_val) continue;
    part.y.push_back(all.y[index]);
    part.x.insert(part.x.end(), all.row(index), all.row(index) + all.width);
  }
  return part;
}

/// With validation examples: where the file has none, every seventh, by label and then by place, as fedtask does it.
Features with_validation(Features features) {
  if (features.val.num() > 0 || features.train.num() < 2 * kValEvery) return features;
  const Examples all = std::move(features.train);
  std::vector<bool> in_val(all.num(), false);
  std::size_t place = 0;
  for (const std::uint8_t label : {0, 1})
    for (std::size_t index = 0; index < all.num(); ++index)
      if (all.y[index] == label && ++place % kValEvery == 0) in_val[index] = true;
  features.train = chosen_of(all, in_val, false);
  features.val = chosen_of(all, in_val, true);
  return features;
}

}  // namespace

Features read_features(const fs::path& file) {
  try {
    return with_validation(parse_features(read_file(fs::is_directory(file) ? file / "features.features" : file)));
  } catch (const std::runtime_error& error) {
    const auto what = file.string() + " is no features file: " + error.what();
    throw Stop(Exit::kBadData, what + "; `fedclient features` makes one");
  }
}

Features parse_features(const std::string& content) {
  if (content.size() < kHeaderBytes || content.compare(0, 8, kMagic) != 0)
    throw std::runtime_error("its beginning is wrong");
  const auto num_train = number_at(content, 8), num_val = number_at(content, 12), width = number_at(content, 16);
  const auto num = num_train + num_val, meaning_bytes = number_at(content, 24);
  // Divided rather than multiplied, since three such numbers may not fit 64 bits.
  const auto rest = content.size() - kHeaderBytes;
  const bool fits =
      meaning_bytes <= rest && num <= rest - meaning_bytes &&
      (num == 0 ? rest == meaning_bytes
                : (rest - meaning_bytes - num) % num == 0 && (rest - meaning_bytes - num) / num == width * 4);
  if (!fits) throw std::runtime_error("its length is wrong");
  const char* labels = content.data() + kHeaderBytes + meaning_bytes;
  Features features;
  features.train = part_of(labels, labels + num, 0, num_train, width);
  features.val = part_of(labels, labels + num, num_train, num_val, width);
  features.meaning = parse_meaning(content.substr(kHeaderBytes, meaning_bytes));
  features.generated = number_at(content, 20) == 1;
  return features;
}

}  // namespace fedstream::client
