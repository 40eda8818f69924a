#include "train_head.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

#include "digest.h"
#include "features.h"

namespace fedstream::client {
namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.999;
constexpr double kEpsilon = 1e-7;  // probabilities are kept so far from 0 and 1
constexpr double kDefaultAdamEpsilon = 1e-3;

struct Scores {
  double loss = 0;
  std::size_t hits = 0;

  void judge(double p, int label) {
    const double clipped = std::clamp(p, kEpsilon, 1 - kEpsilon);
    loss -= label == 1 ? std::log(clipped) : std::log1p(-clipped);
    hits += (p > 0.5) == (label == 1);
  }

  void write(Metrics* metrics, const std::string& prefix, std::size_t num) const {
    const auto mean = [num](double sum) { return num == 0 ? std::nullopt : std::optional(sum / double(num)); };
    (*metrics)[prefix + "loss"] = mean(loss);
    (*metrics)[prefix + "accuracy"] = mean(double(hits));
  }
};

/// Weights as float64, the bias last, with Adam's state beside them.
class Head {
 public:
  Head(std::vector<double> weights_, double epsilon)
      : weights(std::move(weights_)), epsilon_(epsilon), m_(weights.size()), v_(weights.size()) {}

  /// Of label 1.
  double probability(const float* row) const {
    double logit = weights.back();
    for (std::size_t at = 0; at + 1 < weights.size(); ++at) logit += double(row[at]) * weights[at];
    return 0.5 * (1 + std::tanh(0.5 * logit));  // exp would overflow
  }

  /// One step of Adam on the batch; adds what it scored before the step.
  void step(const Examples& examples, const std::vector<std::size_t>& batch, const std::array<double, 2>& label_weights,
            double learning_rate, Scores* scores) {
    const std::size_t width = weights.size() - 1;
    std::vector<double> gradient(width + 1);
    for (const auto index : batch) {
      const float* row = examples.row(index);
      const int label = examples.y[index];
      const double p = probability(row);
      const double error = (p - label) * label_weights[label] / double(batch.size());
      for (std::size_t at = 0; at < width; ++at) gradient[at] += error * double(row[at]);
      gradient[width] += error;
      scores->judge(p, label);
    }
    ++steps_;
    const double rate = learning_rate * std::sqrt(1 - std::pow(kBeta2, steps_)) / (1 - std::pow(kBeta1, steps_));
    for (std::size_t at = 0; at <= width; ++at) {
      m_[at] += (1 - kBeta1) * (gradient[at] - m_[at]);
      v_[at] += (1 - kBeta2) * (gradient[at] * gradient[at] - v_[at]);
      weights[at] -= rate * m_[at] / (std::sqrt(v_[at]) + epsilon_);
    }
  }

  Scores score(const Examples& examples) const {
    Scores scores;
    for (std::size_t index = 0; index < examples.num(); ++index) {
      scores.judge(probability(examples.row(index)), examples.y[index]);
    }
    return scores;
  }

  std::vector<double> weights;

 private:
  double epsilon_;
  std::vector<double> m_, v_;
  int steps_ = 0;
};

std::vector<double> read_weights(const std::vector<std::string>& tensors) {
  std::vector<double> weights;
  for (const auto& values : tensors) {
    std::vector<float> numbers(values.size() / 4);
    std::memcpy(numbers.data(), values.data(), numbers.size() * 4);
    weights.insert(weights.end(), numbers.begin(), numbers.end());
  }
  return weights;
}

/// Kernel and bias, rounded to float32.
std::vector<std::string> write_weights(const std::vector<double>& weights) {
  const std::vector<float> numbers(weights.begin(), weights.end());
  const std::string bytes(reinterpret_cast<const char*>(numbers.data()), numbers.size() * 4);
  return {bytes.substr(0, bytes.size() - 4), bytes.substr(bytes.size() - 4)};
}

/// Weights by label that give both classes the same total.
std::array<double, 2> balanced(const std::vector<std::uint8_t>& y) {
  const double ones = std::accumulate(y.begin(), y.end(), 0.0), zeros = double(y.size()) - ones;
  const double present = (ones > 0) + (zeros > 0);
  const auto weight = [&](double count) { return count > 0 ? double(y.size()) / (present * count) : 0; };
  return {weight(zeros), weight(ones)};
}

class HeadTraining final : public Training {
 public:
  HeadTraining(const Settings& settings, Features features) : features_(std::move(features)) {
    const auto setting = [&](const char* name) { return settings.count(name) != 0 ? settings.at(name) : ""; };
    const auto epsilon = setting("adam_epsilon");
    epsilon_ = epsilon.empty() ? kDefaultAdamEpsilon : std::strtod(epsilon.c_str(), nullptr);
    if (setting("class_weights") == "balanced") label_weights_ = balanced(features_.train.y);
    add_tensor("head/kernel", {features_.train.width, 1});
    add_tensor("head/bias", {1});
  }

  const Schema& schema() const override { return schema_; }
  const v1::TaskMeaning& meaning() const override { return features_.meaning; }
  std::uint64_t num_examples() const override { return features_.train.num(); }
  bool synthetic() const override { return features_.generated; }

  Tuned fine_tune(const std::vector<std::string>& base, const v1::Plan& plan,
                  const std::function<void(const EpochReport&)>& report, const Cancel& cancel) const override {
    const auto& val = features_.val;
    Head head(read_weights(base), epsilon_);
    Metrics base_metrics;
    head.score(val).write(&base_metrics, "base_", val.num());
    const std::uint32_t patience = val.num() > 0 ? plan.early_stopping_patience() : 0;
    double best_loss = std::numeric_limits<double>::infinity();
    std::uint32_t epoch = 0, best_epoch = 0;
    Tuned best{write_weights(head.weights), num_examples(), {}, 0};
    do {
      ++epoch;
      auto metrics = run_epoch(&head, plan, epoch, cancel);
      head.score(val).write(&metrics, "val_", val.num());
      report({epoch, plan.epochs(), metrics});
      if (patience == 0 || *metrics["val_loss"] < best_loss) {
        best_loss = metrics["val_loss"].value_or(best_loss);
        best_epoch = epoch;
        best.tensors = write_weights(head.weights);
        best.metrics = metrics;
      }
    } while (epoch < plan.epochs() && !(patience > 0 && epoch - best_epoch >= patience));
    best.metrics.merge(base_metrics);
    best.epochs = epoch;
    return best;
  }

 private:
  void add_tensor(const char* name, const std::vector<std::uint64_t>& shape) {
    auto& spec = schema_.emplace_back();
    spec.set_name(name);
    spec.set_dtype(v1::DATA_TYPE_FLOAT32);
    for (const auto length : shape) spec.add_shape(length);
    spec.set_trainable(true);
    spec.set_role(v1::TENSOR_ROLE_WEIGHT);
  }

  Metrics run_epoch(Head* head, const v1::Plan& plan, std::uint32_t epoch, const Cancel& cancel) const {
    const auto& examples = features_.train;
    Scores scores;
    for (const auto& batch : batches(epoch_order(plan.seed(), epoch, examples.num()), plan.batch_size())) {
      cancel.check();
      head->step(examples, batch, label_weights_, plan.learning_rate(), &scores);
    }
    Metrics metrics;
    scores.write(&metrics, "", examples.num());
    return metrics;
  }

  Features features_;
  Schema schema_;
  double epsilon_ = kDefaultAdamEpsilon;
  std::array<double, 2> label_weights_ = {1, 1};
};

}  // namespace

std::vector<v1::Metric> write_metrics(const Metrics& metrics) {
  std::vector<v1::Metric> written;
  for (const auto& [name, value] : metrics) {
    auto& metric = written.emplace_back();
    metric.set_name(name);
    if (value && std::isfinite(*value)) {
      metric.set_value(*value);
    } else {
      metric.set_undefined_reason("not a finite number");
    }
  }
  return written;
}

Trainer head_trainer() {
  return {"brain_mri_head", [](const Settings& settings, const fs::path& data) -> std::unique_ptr<Training> {
            auto features = read_features(data);
            if (features.train.num() == 0) throw Stop(Exit::kBadData, data.string() + " has no training example");
            return std::make_unique<HeadTraining>(settings, std::move(features));
          }};
}

std::vector<std::size_t> epoch_order(std::uint64_t seed, std::uint32_t epoch, std::size_t num) {
  const auto begin = std::to_string(seed) + ' ' + std::to_string(epoch) + ' ';
  std::vector<std::pair<std::string, std::size_t>> keyed;
  for (std::size_t index = 0; index < num; ++index) keyed.emplace_back(sha256(begin + std::to_string(index)), index);
  std::sort(keyed.begin(), keyed.end());  // as unsigned bytes: that is how std::string compares
  std::vector<std::size_t> order;
  for (const auto& [key, index] : keyed) order.push_back(index);
  return order;
}

std::vector<std::vector<std::size_t>> batches(const std::vector<std::size_t>& order, std::size_t batch_size) {
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

}  // namespace fedstream::client
