/// What the client decides and keeps: training, offers, waits, options, files.
#include <sys/stat.h>

#include <cstring>

#include "../src/backoff.h"
#include "../src/certificates.h"
#include "../src/digest.h"
#include "../src/features.h"
#include "../src/limits.h"
#include "../src/options.h"
#include "../src/reply.h"
#include "../src/safetensors.h"
#include "../src/store.h"
#include "../src/train_head.h"
#include "check.h"

using namespace fedstream::client;
namespace v1 = fedstream::v1;

namespace {

constexpr char kMeaning[] = "fedstream meaning v1\nno\tyes\nyes\n2 numbers\n";

std::string number(std::uint32_t value) { return {reinterpret_cast<const char*>(&value), 4}; }

/// A features file of two clouds of points, by turns.
std::string clouds(std::uint32_t num, std::uint32_t num_val, float distance = 1) {
  std::string labels, features;
  for (std::uint32_t at = 0; at < num + num_val; ++at) {
    labels += char(at % 2);
    for (std::uint32_t axis = 0; axis < 2; ++axis) {
      const double wobble = std::sin((2 * at + axis) * 12.9898) * 43758.5453;
      const float value = float(2 * (wobble - std::floor(wobble)) - 1) + (at % 2 == 1 ? distance : -distance);
      features.append(reinterpret_cast<const char*>(&value), 4);
    }
  }
  return "FSFEAT01" + number(num) + number(num_val) + number(2) + number(1) + number(sizeof kMeaning - 1) + kMeaning +
         labels + features;
}

v1::Plan plan(std::uint32_t epochs, std::uint32_t patience = 0, std::uint64_t seed = 3) {
  v1::Plan plan;
  plan.set_epochs(epochs);
  plan.set_batch_size(8);
  plan.set_learning_rate(0.1);
  plan.set_early_stopping_patience(patience);
  plan.set_seed(seed);
  return plan;
}

Tuned tune(const std::string& features, const v1::Plan& plan, const Cancel& cancel = {}) {
  const auto file = fs::path(check::folder()) / "site.features";
  write_durably(file, features);
  const auto training = head_trainer().open({}, file);
  return training->fine_tune(
      {std::string(8, '\0'), std::string(4, '\0')}, plan, [](const EpochReport&) {}, cancel);
}

Entry entry(const std::string& values) {
  Spec spec;
  spec.set_name("tensor");
  spec.set_dtype(v1::DATA_TYPE_UINT8);
  spec.add_shape(values.size());
  return entry_of(spec, values);
}

std::vector<std::string> run_words(std::vector<std::string> more = {}) {
  std::vector<std::string> words{"--server", "h:1", "--data",        "d",
                                 "--name",   "a",   "--fingerprint", "sha256:" + std::string(64, '0')};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

}  // namespace

TEST(features_read_as_documented) {
  const auto read = parse_features(clouds(3, 1));
  CHECK(read.train.num() == 3 && read.val.num() == 1 && read.train.width == 2 && read.generated);
  CHECK(canonical_meaning(read.meaning) == kMeaning);
  CHECK(read.train.row(1)[0] > 0 && read.train.row(2)[0] < 0 && read.val.y[0] == 1);
}

TEST(features_that_are_damaged_are_refused) {
  const auto sound = clouds(3, 1);
  CHECK_THROWS(std::runtime_error, parse_features(""));
  CHECK_THROWS(std::runtime_error, parse_features("X" + sound));
  CHECK_THROWS(std::runtime_error, parse_features(sound + "x"));
  CHECK_THROWS(std::runtime_error, parse_features(sound.substr(0, sound.size() - 1)));
  CHECK_THROWS(std::runtime_error,
               parse_features("FSFEAT01" + number(~0U) + number(~0U) + number(~0U) + number(1) + number(0)));
}

TEST(order_and_batches_are_those_of_fedtask) {
  CHECK((epoch_order(7, 1, 5) == std::vector<std::size_t>{0, 1, 4, 3, 2}));
  CHECK((batches({1, 2, 3, 4, 5, 6, 7}, 3) == std::vector<std::vector<std::size_t>>{{1, 2, 3}, {4, 5}, {6, 7}}));
}

TEST(fine_tune_learns_and_repeats_to_the_bit) {
  const auto one = tune(clouds(40, 10), plan(20)), two = tune(clouds(40, 10), plan(20));
  CHECK(*one.metrics.at("accuracy") > 0.9 && *one.metrics.at("loss") < *one.metrics.at("base_loss"));
  CHECK(one.tensors == two.tensors && one.num_examples == 40 && one.epochs == 20);
  CHECK(tune(clouds(40, 10), plan(20, 0, 4)).tensors != one.tensors);
  CHECK(!tune(clouds(13, 0), plan(2)).metrics.at("val_loss").has_value());  // of 14, two would be set aside
  const auto set_aside = tune(clouds(14, 0), plan(2));
  CHECK(set_aside.metrics.at("val_loss").has_value() && set_aside.num_examples == 12);
}

TEST(fine_tune_ends_early_and_when_it_is_told_to) {
  CHECK(tune(clouds(40, 10, 0.1F), plan(500, 2)).epochs < 500);
  Cancel cancel;
  cancel.request();
  CHECK_THROWS(Cancelled, tune(clouds(40, 10), plan(20), cancel));
}

TEST(offers_are_answered_within_the_limits) {
  const auto is = [](const Reply& reply, std::uint32_t epochs, double seconds) {
    return reply.decline.empty() && reply.epochs == epochs && std::abs(reply.seconds - seconds) < 1e-9;
  };
  CHECK(reply(10, 100, {}, {}).accepts());
  CHECK(is(reply(10, 100, {3, 0}, {}), 3, 0));
  CHECK(reply(10, 100, {10, 0}, {8, 0, false}).accepts());
  CHECK(is(reply(10, 100, {}, {10, 5, false}), 0, 125));
  CHECK(is(reply(10, 100, {}, {10, 0, true}), 8, 0));
  CHECK(is(reply(10, 100, {0, 21}, {5, 0, false}), 4, 0));
  CHECK(!reply(10, 100, {0, 1}, {5, 0, false}).decline.empty());
  CHECK(!reply(10, 100, {}, {500, 0, true}).decline.empty());
}

TEST(waits_double_up_to_the_longest) {
  const Patience patience{1, 5, std::nullopt};
  CHECK(wait_seconds(0, patience, 0.5) == 1.5 && wait_seconds(2, patience, 0.5) == 4.5 &&
        wait_seconds(99, patience, 0.5) == 5.5);
}

TEST(trouble_is_tried_again_and_a_refusal_never) {
  const Log log("test");
  Patience patience{0.001, 0.002, std::nullopt};
  int tries = 0;
  const auto shaky = [&] { return ++tries < 4 ? throw Trouble("cut") : tries; };
  CHECK(until_done(
            shaky, [] { return 0; }, patience, "trying", log, Cancel()) == 4);
  const auto refused = [&]() -> int {
    ++tries;
    throw Refusal("ROUND_CLOSED", "over");
  };
  CHECK_THROWS(Refusal, until_done(
                            refused, [] { return 0; }, patience, "trying", log, Cancel()));
  CHECK(tries == 5);
  patience.give_up_after_seconds = 0.01;
  const auto broken = []() -> int { throw Trouble("cut"); };
  CHECK_THROWS(Trouble, until_done(
                            broken, [] { return 0; }, patience, "trying", log, Cancel()));
}

TEST(options_read_as_they_are_meant) {
  const auto config = read_run(run_words({"--max-seconds", "1800", "--state-dir", "s", "--give-up-after=7"}));
  CHECK(config.limits.max_seconds == 1800 && config.limits.max_epochs == 0 && config.state_dir == "s");
  CHECK(config.give_up_after_seconds == 7 && config.out == "runs/a");
  CHECK(read_join({"h:1", "--token", "t"}).server == "h:1");
}

TEST(wrong_options_are_refused) {
  const std::vector<std::vector<std::string>> wrong = {
      {"--speed", "9"},  {"--plaintext"},         {"--server-ca", "f"},     {"--certificate", "f"},
      {"--name", "a/b"}, {"--server", "nowhere"}, {"--max-epochs", "many"}, {"--fingerprint", "sha256:0"},
      {"more"}};
  for (const auto& words : wrong) CHECK_THROWS(Stop, read_run(run_words(words)));
  CHECK_THROWS(Stop, read_run({"--data", "d", "--server", "far.example.org:1", "--plaintext"}));
  CHECK_THROWS(Stop, read_run({"--data", "d", "--identity", check::folder()}));
  CHECK_THROWS(Stop, read_join({"h:1"}));
}

TEST(store_keeps_what_counts_and_resumes) {
  const auto folder = check::folder();
  Store store(folder);
  const auto one = entry("abcdef"), two = entry("");
  store.append_partial(one, "abc");
  CHECK(Store(folder).partial_size(one) == 3 && !store.has(one));
  store.append_partial(one, "def");
  CHECK(store.adopt(one) && store.adopt(two) && store.has(one) && store.has(two) && store.read(one, 2, 2) == "cd");
  const auto damaged = entry("xyz");
  store.append_partial(damaged, "xy!");
  CHECK(!store.adopt(damaged) && store.partial_size(damaged) == 0);
  write_durably(fs::path(folder) / "tensors" / hex(one.digest().sha256()), "abcdeX");
  store.doubt();
  CHECK(!store.has(one));
}

TEST(update_counts_while_every_byte_of_it_is_there) {
  const auto folder = check::folder();
  Store store(folder);
  const auto tensor = entry("weights"), other = entry("other");
  KeptUpdate update;
  update.set_offer_id("../offer");
  update.set_base_sha256("base");
  *update.add_entries() = tensor;
  *update.mutable_header()->mutable_model_digest() = model_digest({tensor});
  store.put(tensor, "weights");
  store.put(other, "other");
  store.record(update);
  CHECK(Store(folder).load_update("../offer", "base").has_value());
  CHECK(!store.load_update("../offer", "another base").has_value() && !store.load_update("offer", "base").has_value());
  store.keep_only("../offer", {});
  CHECK(store.has(tensor) && !store.has(other));
  fs::remove(fs::path(folder) / "tensors" / hex(tensor.digest().sha256()));
  CHECK(!Store(folder).load_update("../offer", "base").has_value());
  store.keep_only("next", {});
  CHECK(fs::is_empty(fs::path(folder) / "updates"));
}

TEST(keys_are_private_and_requests_are_theirs) {
  const IdentityFolder folder(fs::path(check::folder()) / "identity");
  const auto key = folder.key();
  struct stat facts {};
  CHECK(stat((folder.folder / "site.key").c_str(), &facts) == 0 && (facts.st_mode & 0777) == 0600);
  CHECK(folder.key() == key && key_sha256(key).size() == 32 && !make_request(key, "site").empty());
  CHECK(key.rfind("-----BEGIN PRIVATE KEY-----", 0) == 0);
  CHECK_THROWS(std::runtime_error, key_sha256("no key"));
  CHECK((CertificateFacts{"", "", "", 0, 90}.is_due(61)) && !(CertificateFacts{"", "", "", 0, 90}.is_due(59)));
}

TEST(model_is_written_as_safetensors) {
  const auto header = safetensors_header({entry("ab")});
  CHECK(header.size() % 8 == 0 && header[0] == char(header.size() - 8));
  CHECK(header.find(R"({"tensor":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})") == 8);
}

TEST(names_and_reasons_keep_their_bounds) {
  CHECK(limits::is_client_name("a") && !limits::is_client_name("-a") && !limits::is_client_name(std::string(65, 'a')));
  CHECK(!limits::is_client_name("ä") && !limits::is_client_name(""));
  std::string reason = "a\n";
  for (int at = 0; at < 600; ++at) reason += "ä";
  const auto clipped = limits::clip_reason(reason);
  CHECK(clipped.size() <= 1'024 && clipped.size() >= 1'023 && clipped.rfind("a ä", 0) == 0);
}
