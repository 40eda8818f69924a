/// The task `brain_mri_head`: logistic regression with Adam on features, as fedtask/brain_mri_head/training.py has it.
#pragma once

#include <absl/strings/str_split.h>

#include <array>
#include <cstring>
#include <limits>

#include "../src/model.h"

// Features and weights are copied as they lie in memory.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "this client is for little-endian machines");

namespace fedstream::client {

// --- Features ---

/// Examples row after row: `x` has `y.size() * width` numbers. `train` and `val` are places in it.
struct Features {
  std::vector<float> x;
  std::vector<std::uint8_t> y;
  std::size_t width = 0;
  std::vector<std::size_t> train, val;
  v1::TaskMeaning meaning;
  bool generated = false;

  const float* row(std::size_t at) const { return x.data() + at * width; }
};

inline std::string canonical_meaning(const v1::TaskMeaning& meaning) {
  return "fedstream meaning v1\n" + absl::StrJoin(meaning.class_names(), "\t") + '\n' + meaning.positive_class() +
         '\n' + meaning.preprocessing() + '\n';
}

/// The meaning of which `text` is the canonical description. @throws std::runtime_error it is none
inline v1::TaskMeaning parse_meaning(const std::string& text) {
  v1::TaskMeaning meaning;
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  if (lines.size() == 5) {
    for (const auto& name : absl::StrSplit(lines[1], '\t', absl::SkipEmpty()))
      meaning.add_class_names(std::string(name));
    meaning.set_positive_class(lines[2]);
    meaning.set_preprocessing(lines[3]);
  }
  if (canonical_meaning(meaning) != text) throw std::runtime_error("it holds no canonical description of a meaning");
  return meaning;
}

/// The plain form of a features file, as `fedclient features` writes it; numbers are little-endian:
///
///     8  `FSFEAT01`          4  training examples    4  validation examples    4  d    4  1 for generated data
///     4  m                   m  the task's meaning   n  labels, uint8          n * d * 4  features, float32
///
/// Where there are no validation examples, every seventh is set aside, by label and then by place, as fedtask does it.
/// @throws std::runtime_error the content is not sound
inline Features parse_features(const std::string& content) {
  constexpr std::size_t kHeaderBytes = 28, kValEvery = 7;
  const auto require = [](bool is_sound, const char* what) {
    if (!is_sound) throw std::runtime_error(what);
  };
  require(content.size() >= kHeaderBytes && content.compare(0, 8, "FSFEAT01") == 0, "its beginning is wrong");
  std::array<std::uint32_t, 5> numbers{};
  std::memcpy(numbers.data(), content.data() + 8, sizeof numbers);
  const std::uint64_t num_train = numbers[0], num = num_train + numbers[1], width = numbers[2],
                      meaning_bytes = numbers[4];
  const auto rest = content.size() - kHeaderBytes;
  // Divided rather than multiplied, since three such numbers may not fit 64 bits.
  const bool fits =
      meaning_bytes <= rest && num <= rest - meaning_bytes &&
      (num == 0 ? rest == meaning_bytes
                : (rest - meaning_bytes - num) % num == 0 && (rest - meaning_bytes - num) / num == width * 4);
  require(fits, "its length is wrong");
  const char* labels = content.data() + kHeaderBytes + meaning_bytes;
  Features all{std::vector<float>(num * width), {labels, labels + num}, width, {}, {}, {}, numbers[3] == 1};
  all.meaning = parse_meaning(content.substr(kHeaderBytes, meaning_bytes));
  if (!all.x.empty()) std::memcpy(all.x.data(), labels + num, all.x.size() * 4);
  require(std::all_of(all.x.begin(), all.x.end(), [](float value) { return std::isfinite(value); }) &&
              std::all_of(all.y.begin(), all.y.end(), [](int label) { return label <= 1; }),
          "a label or a feature is out of bounds");
  const bool sets_aside = num == num_train && num >= 2 * kValEvery;
  std::size_t places[] = {0, std::size_t(std::count(all.y.begin(), all.y.end(), 0))};  // by label
  for (std::size_t at = 0; at < num; ++at) {
    const bool is_val = at >= num_train || (sets_aside && ++places[all.y[at]] % kValEvery == 0);
    (is_val ? all.val : all.train).push_back(at);
  }
  return all;
}

// --- Training ---

/// The order of the examples in an epoch: by the SHA-256 of the text `SEED EPOCH INDEX`.
inline std::vector<std::size_t> epoch_order(std::uint64_t seed, std::uint32_t epoch, std::size_t num) {
  const auto begin = std::to_string(seed) + ' ' + std::to_string(epoch) + ' ';
  std::vector<std::pair<std::string, std::size_t>> keyed;
  for (std::size_t index = 0; index < num; ++index) keyed.emplace_back(sha256(begin + std::to_string(index)), index);
  std::sort(keyed.begin(), keyed.end());  // as unsigned bytes: that is how std::string compares
  std::vector<std::size_t> order;
  for (const auto& [key, index] : keyed) order.push_back(index);
  return order;
}

/// The order cut into parts of nearly equal size, of which the first are longer by one.
inline std::vector<std::vector<std::size_t>> batches(const std::vector<std::size_t>& order, std::size_t batch_size) {
  const std::size_t count = (order.size() + batch_size - 1) / batch_size;
  std::vector<std::vector<std::size_t>> parts;
  auto from = order.begin();
  for (std::size_t at = 0; at < count; ++at) {
    const auto to = from + std::ptrdiff_t(order.size() / count + (at < order.size() % count ? 1 : 0));
    parts.emplace_back(from, to);
    from = to;
  }
  return parts;
}

using Metrics = google::protobuf::RepeatedPtrField<v1::Metric>;

struct Scores {
  double loss = 0;
  std::size_t hits = 0, num = 0;

  void judge(double p, int label) {
    const double clipped = std::clamp(p, 1e-7, 1 - 1e-7);
    loss -= label == 1 ? std::log(clipped) : std::log1p(-clipped);
    hits += (p > 0.5) == (label == 1);
    ++num;
  }

  /// As they travel; the mean of none, or one that is not finite, goes without value (R-MOD-6).
  void write(const std::string& prefix, Metrics* metrics) const {
    for (const auto& [name, sum] : {std::pair("loss", loss), std::pair("accuracy", double(hits))}) {
      auto& metric = *metrics->Add();
      metric.set_name(prefix + name);
      const double mean = sum / double(num);
      std::isfinite(mean) ? metric.set_value(mean) : metric.set_undefined_reason("not a finite number");
    }
  }
};

/// Weights as float64, the bias last, with Adam's state beside them.
class Head {
 public:
  Head(const Model& model, double epsilon) : epsilon_(epsilon) {
    for (const auto& tensor : model.values()) {
      std::vector<float> numbers(tensor.size() / 4);
      std::memcpy(numbers.data(), tensor.data(), numbers.size() * 4);
      weights_.insert(weights_.end(), numbers.begin(), numbers.end());
    }
    m_.resize(weights_.size());
    v_.resize(weights_.size());
  }

  /// Kernel and bias, rounded to float32.
  void write(Model* model) const {
    const std::vector<float> numbers(weights_.begin(), weights_.end());
    const std::string bytes(reinterpret_cast<const char*>(numbers.data()), numbers.size() * 4);
    model->clear_values();
    model->add_values(bytes.substr(0, bytes.size() - 4));
    model->add_values(bytes.substr(bytes.size() - 4));
  }

  /// One step of Adam on the batch; adds what it scored before the step.
  void step(const Features& all, const std::vector<std::size_t>& batch, const std::array<double, 2>& label_weights,
            double learning_rate, Scores* scores) {
    constexpr double kBeta1 = 0.9, kBeta2 = 0.999;
    const std::size_t width = weights_.size() - 1;
    std::vector<double> gradient(width + 1);
    for (const auto place : batch) {
      const float* row = all.row(all.train[place]);
      const int label = all.y[all.train[place]];
      const double p = probability(row);
      const double error = (p - label) * label_weights[std::size_t(label)] / double(batch.size());
      for (std::size_t at = 0; at < width; ++at) gradient[at] += error * double(row[at]);
      gradient[width] += error;
      scores->judge(p, label);
    }
    ++steps_;
    const double rate = learning_rate * std::sqrt(1 - std::pow(kBeta2, steps_)) / (1 - std::pow(kBeta1, steps_));
    for (std::size_t at = 0; at <= width; ++at) {
      m_[at] += (1 - kBeta1) * (gradient[at] - m_[at]);
      v_[at] += (1 - kBeta2) * (gradient[at] * gradient[at] - v_[at]);
      weights_[at] -= rate * m_[at] / (std::sqrt(v_[at]) + epsilon_);
    }
  }

  Scores validate(const Features& all) const {
    Scores scores;
    for (const auto at : all.val) scores.judge(probability(all.row(at)), all.y[at]);
    return scores;
  }

 private:
  /// Of label 1.
  double probability(const float* row) const {
    double logit = weights_.back();
    for (std::size_t at = 0; at + 1 < weights_.size(); ++at) logit += double(row[at]) * weights_[at];
    return 0.5 * (1 + std::tanh(0.5 * logit));  // exp would overflow
  }

  const double epsilon_;
  std::vector<double> weights_, m_, v_;
  int steps_ = 0;
};

/// Epochs until the plan's are done, or the validation loss has not sunk for as many as the plan's patience; then the
/// best of them counts.
inline Model tune_head(const Features& all, const Settings& settings, const Model& base, const v1::Plan& plan,
                       const std::function<void(const v1::Progress&)>& report, const Effort& effort) {
  const auto setting = [&](const char* name) { return settings.count(name) != 0 ? settings.at(name) : ""; };
  std::array<double, 2> label_weights = {1, 1};
  if (setting("class_weights") == "balanced") {  // both classes have the same total
    const double num = double(all.train.size());
    const double ones =
        double(std::count_if(all.train.begin(), all.train.end(), [&](auto at) { return all.y[at] == 1; }));
    const double present = (ones > 0) + (ones < num);
    label_weights = {ones < num ? num / (present * (num - ones)) : 0, ones > 0 ? num / (present * ones) : 0};
  }
  const auto epsilon = setting("adam_epsilon");
  Head head(base, epsilon.empty() ? 1e-3 : std::strtod(epsilon.c_str(), nullptr));
  Metrics base_metrics;
  head.validate(all).write("base_", &base_metrics);
  const std::uint32_t patience = !all.val.empty() ? plan.early_stopping_patience() : 0;
  double best_loss = std::numeric_limits<double>::infinity();
  std::uint32_t epoch = 0, best_epoch = 0;
  Model best;
  head.write(&best);
  do {
    ++epoch;
    Scores scores;
    for (const auto& batch :
         batches(epoch_order(plan.seed(), epoch, all.train.size()), std::max(1U, plan.batch_size()))) {
      effort.check();
      head.step(all, batch, label_weights, plan.learning_rate(), &scores);
    }
    const Scores validated = head.validate(all);
    v1::Progress progress;
    progress.set_phase(v1::PHASE_TRAINING);
    progress.set_epoch(epoch);
    progress.set_epochs(plan.epochs());
    progress.set_fraction(float(double(epoch) / plan.epochs()));
    scores.write("", progress.mutable_metrics());
    validated.write("val_", progress.mutable_metrics());
    report(progress);
    const double loss = validated.loss / double(validated.num);
    if (patience != 0 && !(loss < best_loss)) continue;
    best_loss = loss;
    best_epoch = epoch;
    head.write(&best);
    *best.mutable_header()->mutable_metrics() = progress.metrics();
  } while (epoch < plan.epochs() && !(patience > 0 && epoch - best_epoch >= patience));
  best.mutable_header()->mutable_metrics()->MergeFrom(base_metrics);
  best.mutable_header()->set_num_examples(all.train.size());
  best.mutable_header()->set_epochs(epoch);
  return best;
}

/// @param data a features file, or a folder with `features.features`
inline Task open_head(const Settings& settings, const fs::path& data) {
  Features features;
  try {
    features = parse_features(read_file(fs::is_directory(data) ? data / "features.features" : data));
  } catch (const std::runtime_error& error) {
    throw Stop(Exit::kBadData,
               data.string() + " is no features file: " + error.what() + "; `fedclient features` makes one");
  }
  if (features.train.empty()) throw Stop(Exit::kBadData, data.string() + " has no training example");
  Task task{{}, features.meaning, features.train.size(), features.generated, {}};
  for (const bool is_kernel : {true, false}) {
    auto& spec = *task.schema.Add();
    spec.set_name(is_kernel ? "head/kernel" : "head/bias");
    spec.set_dtype(v1::DATA_TYPE_FLOAT32);
    if (is_kernel) spec.add_shape(features.width);
    spec.add_shape(1);
    spec.set_trainable(true);
    spec.set_role(v1::TENSOR_ROLE_WEIGHT);
  }
  task.fine_tune = [settings, features](auto&&... with) { return tune_head(features, settings, with...); };
  return task;
}

}  // namespace fedstream::client
