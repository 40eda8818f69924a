/// What the client decides and keeps: training, offers, waits, options, files.
#include <sys/stat.h>

#include <cstring>

#include "../joining/certificates.h"
#include "../joining/identity.h"
#include "../src/command.h"
#include "../task/head.h"
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

Model tune(const std::string& features, const v1::Plan& plan, const Cancel& cancel = {}) {
  const auto file = fs::path(check::folder()) / "site.features";
  write_durably(file, features);
  Model base;
  base.add_values(std::string(8, '\0'));
  base.add_values(std::string(4, '\0'));
  return open_head({}, file).fine_tune(
      base, plan, [](const auto&) {}, cancel);
}

/// The value of a metric, if it has one.
std::optional<double> metric(const Model& tuned, const std::string& name) {
  for (const auto& one : tuned.header().metrics()) {
    if (one.name() == name && one.has_value()) return one.value();
  }
  return std::nullopt;
}

Entry entry(const std::string& values) {
  v1::TensorSpec spec;
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
  CHECK(read.train.size() == 3 && read.val.size() == 1 && read.width == 2 && read.generated);
  CHECK(canonical_meaning(read.meaning) == kMeaning);
  CHECK(read.row(1)[0] > 0 && read.row(2)[0] < 0 && read.y[read.val[0]] == 1);
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
  CHECK(*metric(one, "accuracy") > 0.9 && *metric(one, "loss") < *metric(one, "base_loss"));
  CHECK(one.values(0) == two.values(0) && one.header().num_examples() == 40 && one.header().epochs() == 20);
  CHECK(tune(clouds(40, 10), plan(20, 0, 4)).values(0) != one.values(0));
  CHECK(!metric(tune(clouds(13, 0), plan(2)), "val_loss"));  // of 14, two would be set aside
  const auto set_aside = tune(clouds(14, 0), plan(2));
  CHECK(metric(set_aside, "val_loss") && set_aside.header().num_examples() == 12);
}

TEST(fine_tune_ends_early_and_when_it_is_told_to) {
  CHECK(tune(clouds(40, 10, 0.1F), plan(500, 2)).header().epochs() < 500);
  Cancel cancel;
  cancel.request();
  CHECK_THROWS(Dropped, tune(clouds(40, 10), plan(20), cancel));
}

TEST(offers_are_answered_within_the_limits) {
  v1::Offer offer;
  offer.mutable_plan()->set_epochs(10);
  offer.mutable_time_remaining()->set_seconds(100);
  const auto counters = [&](const Pace& pace, std::uint32_t epochs, double seconds) {
    const auto answer = answer_to(offer, pace);
    return answer.has_counter_offer() && answer.counter_offer().epochs() == epochs &&
           seconds_of(answer.counter_offer().time_needed()) == seconds;
  };
  CHECK(answer_to(offer, {}).has_accept());
  CHECK(counters({3, 0}, 3, 0));
  CHECK(answer_to(offer, {10, 0, 8, 0, false}).has_accept());
  CHECK(counters({0, 0, 10, 5, false}, 0, 125));
  CHECK(counters({0, 0, 10, 0, true}, 8, 0));
  CHECK(counters({0, 21, 5, 0, false}, 4, 0));
  CHECK(answer_to(offer, {0, 1, 5, 0, false}).has_decline());
  CHECK(answer_to(offer, {0, 0, 500, 0, true}).has_decline());
}

TEST(waits_double_up_to_the_longest) {
  const Patience patience{INFINITY, 1, 5};
  CHECK(wait_seconds(0, patience, 0.5) == 1.5 && wait_seconds(2, patience, 0.5) == 4.5 &&
        wait_seconds(99, patience, 0.5) == 5.5);
}

TEST(trouble_is_tried_again_and_a_refusal_never) {
  Cancel never;
  Patience patience{INFINITY, 0.001, 0.002};
  const auto attempt = [&](const auto& once) {
    return until_done(
        "trying", patience, never, [] { return 0; }, once);
  };
  int tries = 0;
  CHECK(attempt([&] { return ++tries < 4 ? throw Trouble("cut") : tries; }) == 4);
  CHECK_THROWS(Refusal, attempt([&]() -> int { ++tries, throw Refusal("ROUND_CLOSED", "over"); }));
  CHECK(tries == 5);
  patience.give_up_after_seconds = 0.01;
  CHECK_THROWS(Trouble, attempt([]() -> int { throw Trouble("cut"); }));
}

TEST(whoever_waits_for_the_server_is_hurried_when_it_is_back) {
  Cancel cancel;
  std::thread back([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    cancel.hurry();
  });
  CHECK(cancel.sleep(60, true));
  back.join();
  CHECK(!cancel.sleep(0.001, true) && !cancel.sleep(0.001));
}

TEST(options_read_as_they_are_meant) {
  const auto config = read_run(run_words({"--max-seconds", "1800", "--state-dir", "s", "--give-up-after=7"}));
  CHECK(config.pace.max_seconds == 1800 && config.pace.max_epochs == 0 && config.state_dir == "s");
  CHECK(config.patience.give_up_after_seconds == 7 && config.out == "runs/a");
}

TEST(wrong_options_are_refused) {
  const std::vector<std::vector<std::string>> wrong = {
      {"--speed", "9"},  {"--plaintext"},         {"--server-ca", "f"},     {"--certificate", "f"},
      {"--name", "a/b"}, {"--server", "nowhere"}, {"--max-epochs", "many"}, {"--fingerprint", "sha256:0"},
      {"more"}};
  for (const auto& words : wrong) CHECK_THROWS(Stop, read_run(run_words(words)));
  CHECK_THROWS(Stop, read_run({"--data", "d", "--server", "far.example.org:1", "--plaintext"}));
  CHECK_THROWS(Stop, read_run({"--data", "d", "--identity", check::folder()}));
  CHECK_THROWS(Stop, join({"h:1"}));
}

TEST(update_counts_while_every_byte_of_it_is_there) {
  const fs::path place = check::folder();
  const Folder folder(place);
  Model update;
  update.mutable_offer()->set_offer_id("offer");
  update.mutable_offer()->mutable_base_model()->mutable_model_digest()->set_sha256("base");
  *update.add_entries() = entry("weights");
  update.add_values("weights");
  *update.mutable_header()->mutable_model_digest() = model_digest(update.entries());
  folder.keep("update", update);
  auto offer = update.offer();
  CHECK(Folder(place).update(offer)->values(0) == "weights" && !folder.read("model"));
  offer.mutable_base_model()->mutable_model_digest()->set_sha256("another base");
  CHECK(!folder.update(offer));
  offer = update.offer();
  offer.set_offer_id("another offer");
  CHECK(!folder.update(offer));
  update.set_values(0, "weightX");
  folder.keep("update", update);
  CHECK(!folder.update(update.offer()));
  update.set_values(0, "weights");
  update.mutable_entries(0)->mutable_spec()->set_name("another");
  folder.keep("update", update);
  CHECK(!folder.update(update.offer()));
  write_durably(place / "update", "no message");
  CHECK(!folder.update(update.offer()));
}

TEST(bytes_that_arrive_are_those_of_one_request) {
  const fs::path place = check::folder();
  const Folder folder(place);
  v1::ReadChunksRequest one, other;
  other.set_model_sha256("other");
  write_durably(folder.arriving(one), "abc");
  CHECK(read_file(folder.arriving(one)) == "abc");
  folder.arriving(other);
  CHECK(fs::is_empty(place));
}

TEST(keys_are_private_and_requests_are_theirs) {
  const auto file = fs::path(check::folder()) / "site.key";
  const auto key = make_key();
  umask(077);  // as the command does
  write_durably(file, key);
  struct stat facts {};
  CHECK(stat(file.c_str(), &facts) == 0 && (facts.st_mode & 0777) == 0600);
  CHECK(read_file(file) == key && !public_key(read_key(key).get()).empty() && !make_request(key, "site").empty());
  CHECK(key.rfind("-----BEGIN PRIVATE KEY-----", 0) == 0);
  CHECK_THROWS(std::runtime_error, read_key("no key"));
  CHECK((CertificateFacts{"", "", "", 0, 90}.is_due(61)) && !(CertificateFacts{"", "", "", 0, 90}.is_due(59)));
}

TEST(model_is_written_as_safetensors) {
  Model model;
  *model.add_entries() = entry("ab");
  model.add_values("ab");
  const auto file = safetensors(model);
  CHECK(file.size() % 8 == 2 && file[0] == char(file.size() - 10) && file.substr(file.size() - 2) == "ab");
  CHECK(file.find(R"({"tensor":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})") == 8);
}

TEST(names_keep_their_bounds) {
  CHECK(is_client_name("a") && !is_client_name("-a") && !is_client_name(std::string(65, 'a')));
  CHECK(!is_client_name("ä") && !is_client_name(""));
}
