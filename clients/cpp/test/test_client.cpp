/// What the client decides and keeps: training, offers, waits, options, files.
#include <sys/stat.h>

#include <cstring>
#include <thread>

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

Model tune(const std::string& features, const v1::Plan& plan, const Effort& effort = Effort()) {
  const auto file = fs::path(check::folder()) / "site.features";
  write_durably(file, features);
  Model base;
  base.add_values(std::string(8, '\0'));
  base.add_values(std::string(4, '\0'));
  return open_head({}, file).fine_tune(
      base, plan, [](const auto&) {}, effort);
}

/// The value of a metric, if it has one.
std::optional<double> metric(const Model& tuned, const std::string& name) {
  for (const auto& one : tuned.header().metrics()) {
    if (one.name() == name && one.has_value()) return one.value();
  }
  return std::nullopt;
}

/// One tensor of that many bytes.
Schema schema_of(std::size_t size) {
  Schema schema;
  auto& spec = *schema.Add();
  spec.set_name("tensor");
  spec.set_dtype(v1::DATA_TYPE_UINT8);
  spec.add_shape(size);
  return schema;
}

Model model_of(const std::string& values) {
  Model model;
  model.add_values(values);
  return model;
}

/// What the words of `run` come to. @throws CLI::ParseError, Stop
RunConfig read_run(const std::string& words) {
  CLI::App app;
  RunConfig config;
  add_run(app, config);
  app.parse("--server h:1 --data d --name a " + words);
  return complete(config);
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
  Effort effort;
  effort.cancel();
  CHECK_THROWS(Dropped, tune(clouds(40, 10), plan(20), effort));
}

TEST(offers_are_answered_within_the_limits) {
  Site site{{}, check::folder()};
  v1::Offer offer;
  offer.mutable_plan()->set_epochs(10);
  Work work(site, offer);
  CHECK(work.answer(0).has_accept() && work.answer(10).has_accept());
  CHECK(work.answer(3).counter_offer().epochs() == 3);
}

TEST(plan_of_more_than_was_agreed_or_that_cannot_be_is_refused) {
  Site site{{}, check::folder()};
  v1::Offer offer;
  offer.mutable_plan()->set_epochs(10);
  v1::Confirmation sound;
  sound.mutable_lease()->set_seconds(60);
  *sound.mutable_plan() = plan(4);
  auto endless = sound, empty = sound, unbatched = sound, undefined = sound;
  endless.mutable_plan()->set_epochs(1'000'000);
  empty.mutable_plan()->set_epochs(0);
  unbatched.mutable_plan()->set_batch_size(0);
  undefined.mutable_plan()->set_learning_rate(NAN);
  for (const auto& [confirmation, max_epochs] :
       {std::pair(sound, 3U), {endless, 0U}, {empty, 0U}, {unbatched, 0U}, {undefined, 0U}}) {
    Work work(site, offer);
    work.answer(max_epochs);
    work.confirm(confirmation, {});
    const auto said = work.sign_of_life();
    CHECK(said && said->has_failure() && work.answer(0).has_decline());
  }
}

TEST(trouble_is_tried_again_and_a_refusal_never) {
  int tries = 0;
  Effort effort;
  CHECK(effort.until_done("trying", [&] { return ++tries < 2 ? throw Trouble("cut") : tries; }) == 2);
  CHECK_THROWS(Refusal, effort.until_done("trying", [&]() -> int { ++tries, throw Refusal("over"); }));
  CHECK(tries == 3);
  CHECK_THROWS(Trouble, Effort(0).until_done("trying", []() -> int { throw Trouble("cut"); }));
}

TEST(what_would_be_waited_for_longer_than_the_patience_lasts_is_given_up_at_once) {
  const auto began = Clock::now();
  CHECK_THROWS(Trouble, Effort(5).until_done("trying", []() -> int { throw Trouble("later", 8); }));
  CHECK(seconds_since(began) < 2);
}

TEST(waits_double_unless_it_got_further) {
  const auto seconds_of_tries = [](bool gets_further) {
    const auto began = Clock::now();
    int tries = 0;
    Effort effort;
    effort.until_done("trying", [&] {
      if (gets_further) effort.advance();
      return ++tries < 3 ? throw Trouble("cut") : 0;
    });
    return seconds_since(began);
  };
  CHECK(seconds_of_tries(false) >= 1.5 && seconds_of_tries(true) >= 1);
}

TEST(damage_is_repaired_three_times) {
  Effort effort;
  CHECK_THROWS(Damage, effort.until_done("trying", [&]() -> int {
    effort.advance();  // so that the waits are short
    throw Damage("damaged");
  }));
  CHECK(effort.tries() == 4);
}

TEST(whoever_waits_for_the_server_is_hurried_when_it_is_back_and_ended_when_it_is_cancelled) {
  Effort effort;
  const auto began = Clock::now();
  std::thread back([&] {
    for (const bool is_last : {false, true}) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      is_last ? effort.cancel() : effort.advance();
    }
  });
  int tries = 0;
  CHECK_THROWS(Dropped, effort.until_done("trying", [&]() -> int { ++tries, throw Trouble("cut"); }));
  back.join();
  CHECK(tries == 2 && seconds_since(began) < 0.45);
  CHECK_THROWS(Dropped, effort.call(1));
}

TEST(options_read_as_they_are_meant) {
  const auto digits = std::string(32, '0') + std::string(32, 'a');
  const auto config = read_run("--max-epochs 3 --state-dir 'a folder' --fingerprint sha256:" + digits);
  CHECK(config.access.trust.fingerprint == "sha256:" + digits);
  CHECK(config.max_epochs == 3 && config.state_dir == "a folder" && config.out == "runs/a");
  CHECK(read_run("--server-ca c --certificate f --key=k").access.trust.key == "k");
}

TEST(default_folder_for_what_survives_a_restart_is_of_server_and_site) {
  const auto config = read_run("--server-ca c");
  CHECK(config.state_dir == state_home() / "fedstream-cpp" / "h_1" / "a");
  CHECK(config.former_state_dir == state_home() / "fedstream-cpp" / "a");
  CHECK(read_run("--server-ca c --state-dir s").former_state_dir.empty());
}

TEST(default_folder_stays_when_the_server_is_reached_by_another_address) {
  const auto folder = fs::path(check::folder()) / "joined";
  fs::create_directories(folder);
  write_durably(folder / "identity.json", R"({"server": "far:2", "name": "a"})");
  const auto config = read_run("--identity '" + folder.string() + "'");
  CHECK(config.access.server == "h:1");
  CHECK(config.state_dir == state_home() / "fedstream-cpp" / "far_2" / "a");
}

TEST(fingerprint_may_be_in_capitals_and_has_64_digits) {
  const auto known_by = [](const std::string& text) {
    return read_run("--fingerprint " + text).access.trust.fingerprint;
  };
  CHECK(known_by("sha256:" + std::string(64, 'A')) == "sha256:" + std::string(64, 'a'));
  for (const auto& wrong : {std::string("a"), "sha256:" + std::string(63, 'a'), "sha256:" + std::string(65, 'a'),
                            "sha256:" + std::string(64, 'g'), "sha512:" + std::string(64, 'a')}) {
    CHECK_THROWS(Stop, known_by(wrong));
  }
}

TEST(wrong_options_are_refused) {
  for (const char* wrong : {"--speed 9", "--plaintext --server-ca f", "--server-ca f --certificate f", "--name b",
                            "--max-epochs many", "--certificate f --key f", "more"}) {
    CHECK_THROWS(CLI::ParseError, read_run(wrong));
  }
  CHECK_THROWS(Stop, read_run("--plaintext"));
  CHECK_THROWS(Stop, read_run("--identity " + check::folder()));
  CHECK_THROWS(Stop, host_of("nowhere"));
}

TEST(update_counts_while_every_byte_of_it_is_there) {
  Site site{{}, check::folder()};
  site.task.schema = schema_of(7);
  v1::Offer offer;
  offer.mutable_plan()->set_epochs(10);
  offer.set_upload_id("upload");
  // With a limit of one epoch an offer of ten is accepted only if it was trained already.
  const auto counts = [&] { return Work(site, offer).answer(1).has_accept(); };
  const auto keep = [&](const Model& update) { write_durably(site.folder / "update", update.SerializeAsString()); };
  CHECK(!counts());
  auto update = model_of("weights");
  update.mutable_header()->set_upload_id("upload");
  *update.mutable_header()->mutable_model_digest() = model_digest(manifest_of(site.task.schema, update));
  keep(update);
  CHECK(counts());
  offer.set_upload_id("another");
  CHECK(!counts());
  offer.set_upload_id("upload");
  update.set_values(0, "weightX");
  keep(update);
  CHECK(!counts());
  update.clear_values();
  keep(update);
  CHECK(!counts());
  write_durably(site.folder / "update", "no message");
  CHECK(!counts());
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

TEST(sessions_last_until_the_next_certificate_is_due_and_end_often_enough_to_get_it) {
  constexpr std::time_t kDay = 86'400;
  const CertificateFacts season{"", "", "", 0, 90 * kDay}, hours{"", "", "", 0, 6 * 3'600}, minutes{"", "", "", 0, 300};
  CHECK(season.seconds_to_look(0) == 60 * kDay && season.seconds_to_look(61 * kDay) == 3'600);
  CHECK(hours.seconds_to_look(0) == 4 * 3'600 && hours.seconds_to_look(5 * 3'600) == 1'800);
  CHECK(minutes.seconds_to_look(250) == 60);
}

TEST(chunks_are_halved_by_cuts_once_the_server_answers_and_grow_with_what_gets_through) {
  ChunkSize size;
  CHECK(size.most() == kMaxChunkBytes);
  size.cut(1 << 20, 5);
  CHECK(size.most() == kMaxChunkBytes);
  size.resumed(6);  // some of it got through
  CHECK(size.most() == kMaxChunkBytes);
  size.cut(1 << 20, 5), size.resumed(5), size.resumed(5);
  CHECK(size.most() == 1 << 19);
  size.run((16 << 19) - 1);
  CHECK(size.most() == 1 << 19);
  size.run(16 << 19);
  CHECK(size.most() == 1 << 20);
  for (int cut = 0; cut < 30; ++cut) size.cut(size.most(), 0), size.resumed(0);
  CHECK(size.most() == 16 << 10);
}

TEST(what_is_written_waits_for_a_full_disk_and_for_nothing_else) {
  const auto refuse = [](int number) {
    throw fs::filesystem_error("file", std::error_code(number, std::generic_category()));
  };
  Effort effort;
  int tries = 0;
  effort.until_written("waiting", [&] {
    if (++tries < 2) refuse(ENOSPC);
  });
  CHECK(tries == 2);
  CHECK_THROWS(fs::filesystem_error, effort.until_written("waiting", [&] { refuse(EACCES); }));
  effort.cancel();
  CHECK_THROWS(Dropped, effort.until_written("waiting", [&] { refuse(ENOSPC); }));
}

TEST(folders_are_made_with_those_above_them) {
  const auto folder = fs::path(check::folder()) / "above" / "below" / "";
  make_folder(folder);
  make_folder(folder);  // which is there
  CHECK(fs::is_directory(folder));
}

TEST(model_is_written_as_safetensors) {
  const auto file = safetensors(schema_of(2), model_of("ab"));
  CHECK(file.size() % 8 == 2 && file[0] == char(file.size() - 10) && file.substr(file.size() - 2) == "ab");
  CHECK(file.find(R"({"tensor":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})") == 8);
}

TEST(names_keep_their_bounds) {
  CHECK(is_client_name("a") && !is_client_name("-a") && !is_client_name(std::string(65, 'a')));
  CHECK(!is_client_name("ä") && !is_client_name(""));
}
