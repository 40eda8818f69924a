/// The golden vectors: what this client writes is what they say, and what others wrote is read or refused.
#include <google/protobuf/util/message_differencer.h>

#include "../joining/identity.h"
#include "../src/calls.h"
#include "../task/head.h"
#include "check.h"

using namespace fedstream::client;
namespace v1 = fedstream::v1;
using check::unhex;
using check::Vector;
using google::protobuf::Value;
using google::protobuf::util::MessageDifferencer;

namespace {

const std::string& text(const Vector& vector, const char* key) { return vector.at(key).string_value(); }
const auto& list(const Value& value) { return value.list_value().values(); }

template <class Message>
Message parse(const Vector& vector) {
  Message message;
  if (!message.ParseFromString(unhex(text(vector, "message")))) throw Trouble("it is no message");
  return message;
}

/// Name, element type, shape, and what the rest says of a schema's tensor.
v1::TensorSpec spec_of(const Value& tensor) {
  v1::TensorSpec spec;
  spec.set_name(list(tensor)[0].string_value());
  for (int type = v1::DATA_TYPE_BOOL; type <= v1::DATA_TYPE_FLOAT64; ++type) {
    if (canonical_name(v1::DataType(type)) == list(tensor)[1].string_value()) spec.set_dtype(v1::DataType(type));
  }
  for (const auto& length : list(list(tensor)[2])) spec.add_shape(std::uint64_t(length.number_value()));
  if (!list(tensor)[3].has_bool_value()) return spec;
  spec.set_trainable(list(tensor)[3].bool_value());
  spec.set_role(list(tensor)[4].string_value() == "statistic" ? v1::TENSOR_ROLE_STATISTIC : v1::TENSOR_ROLE_WEIGHT);
  return spec;
}

bool starts_with(const std::string& whole, const char* beginning) { return whole.rfind(beginning, 0) == 0; }

}  // namespace

TEST(models_are_described_and_named) {
  for (const auto& vector : check::vectors("models.txt")) {
    Schema schema;
    Model model;
    for (const auto& tensor : list(vector.at("tensors"))) {
      *schema.Add() = spec_of(tensor);
      model.add_values(unhex(list(tensor)[3].string_value()));
    }
    const auto manifest = manifest_of(schema, model);
    CHECK(is_manifest_of(model_digest(manifest).sha256(), manifest, schema));
    CHECK(canonical_model(manifest) == text(vector, "canonical"));
    CHECK(hex(model_digest(manifest).sha256()) == text(vector, "sha256"));
    CHECK(double(model_digest(manifest).size_bytes()) == vector.at("size_bytes").number_value());
  }
}

TEST(schemas_and_meanings_are_described) {
  for (const auto& vector : check::vectors("schemas.txt")) {
    std::string described;
    if (vector.count("tensors") != 0) {
      Schema schema;
      for (const auto& tensor : list(vector.at("tensors"))) *schema.Add() = spec_of(tensor);
      described = canonical_schema(schema);
    } else {
      v1::TaskMeaning meaning;
      for (const auto& name : list(vector.at("class_names"))) meaning.add_class_names(name.string_value());
      meaning.set_positive_class(text(vector, "positive_class"));
      meaning.set_preprocessing(text(vector, "preprocessing"));
      described = canonical_meaning(meaning);
      CHECK(MessageDifferencer::Equals(parse_meaning(described), meaning));
    }
    CHECK(described == text(vector, "canonical"));
    CHECK(hex(sha256(described)) == text(vector, "sha256"));
  }
}

TEST(text_that_is_no_meaning_is_refused) {
  for (const char* wrong :
       {"", "fedstream meaning v2\na\nb\nc\n", "fedstream meaning v1\na\nb\nc", "fedstream meaning v1\na\nb\nc\nd\n"}) {
    CHECK_THROWS(std::runtime_error, parse_meaning(wrong));
  }
}

TEST(manifests_are_read_and_written) {
  for (const auto& vector : check::vectors("manifests.txt")) {
    const auto part = parse<v1::ManifestPart>(vector);
    Schema schema;
    v1::ManifestPart expected;
    for (const auto& value : list(vector.at("entries"))) {
      *schema.Add() = spec_of(value);
      auto& entry = *expected.add_entries();
      *entry.mutable_spec() = spec_of(value);
      entry.mutable_digest()->set_sha256(unhex(list(value)[3].string_value()));
      entry.mutable_digest()->set_size_bytes(std::uint64_t(list(value)[4].number_value()));
      entry.set_encoding(v1::ENCODING_RAW);
      entry.set_encoded_size_bytes(entry.digest().size_bytes());
    }
    CHECK(MessageDifferencer::Equals(expected, part));
    CHECK(is_manifest_of(model_digest(part.entries()).sha256(), part.entries(), schema));
  }
}

TEST(chunks_are_read_and_written) {
  for (const auto& vector : check::vectors("chunks.txt")) {
    const auto data = unhex(text(vector, "data"));
    const auto offset = std::uint64_t(vector.at("write_offset").number_value());
    const auto chunk = parse<v1::Chunk>(vector);
    CHECK(crc32c(data) == std::uint32_t(vector.at("crc32c").number_value()));
    CHECK(MessageDifferencer::Equals(make_chunk(offset, data), chunk));
    CHECK(new_in_chunk(chunk, offset, offset + data.size(), 1 << 20) == data);
  }
}

/// What a status is thrown as, with its words.
std::pair<std::string, std::string> thrown_for(const grpc::Status& status) {
  try {
    require_ok(status);
  } catch (const Damage& error) {
    return {"Damage", error.what()};
  } catch (const Superseded& error) {
    return {"Superseded", error.what()};
  } catch (const Trouble& error) {
    return {"Trouble after " + std::to_string(int(error.at_least)) + " s", error.what()};
  } catch (const Dropped& error) {
    return {"Dropped", error.what()};
  } catch (const Stop& error) {
    return {"Stop", error.what()};
  } catch (const Refusal& error) {
    return {"Refusal", error.what()};
  }
  return {};
}

TEST(refusals_are_read_as_the_table_of_errors_has_them) {
  const std::map<std::string, std::string> kinds = {{"UNAUTHENTICATED", "Stop"},
                                                    {"PERMISSION_DENIED", "Stop"},
                                                    {"NAME_MISMATCH", "Stop"},
                                                    {"ROUND_CLOSED", "Dropped"},
                                                    {"UNKNOWN_UPLOAD", "Dropped"},
                                                    {"DIGEST_MISMATCH", "Damage"},
                                                    {"CHUNK_TOO_LARGE", "Damage"},
                                                    {"SUPERSEDED", "Superseded"},
                                                    {"LIMIT_EXCEEDED", "Trouble after "},
                                                    {"WRONG_OFFSET", "Trouble after 0"},
                                                    {"CHECKSUM_MISMATCH", "Trouble after 0"},
                                                    {"BODY_INCOMPLETE", "Trouble after 0"},
                                                    {"MANIFEST_REQUIRED", "Trouble after 0"}};
  for (const auto& vector : check::vectors("errors.txt")) {
    const auto& reason = text(vector, "reason");
    const auto [kind, words] = thrown_for(grpc::Status(grpc::StatusCode::ABORTED, "", unhex(text(vector, "status"))));
    CHECK(starts_with(kind, kinds.count(reason) != 0 ? kinds.at(reason).c_str() : "Refusal"));
    CHECK(words == reason + ": " + text(vector, "message"));
    if (vector.count("retry_seconds") == 0) continue;
    CHECK(kind == "Trouble after " + std::to_string(int(vector.at("retry_seconds").number_value())) + " s");
  }
  CHECK_THROWS(Trouble, require_ok(grpc::Status(grpc::StatusCode::INTERNAL, "", "\x01\x02mangled")));
  CHECK_THROWS(Trouble, require_ok(grpc::Status(grpc::StatusCode::UNAVAILABLE, "")));
}

TEST(tokens_are_read_or_refused) {
  for (const auto& vector : check::vectors("tokens.txt")) {
    if (vector.count("malformed") != 0) {
      CHECK_THROWS(std::runtime_error, decode_token(text(vector, "token")));
      continue;
    }
    const auto token = decode_token(" " + text(vector, "token") + "\n");
    CHECK(hex(token.id) == text(vector, "token_id") && hex(token.secret) == text(vector, "token_secret"));
    CHECK(token.fingerprint == text(vector, "fingerprint") && token.name == text(vector, "name"));
    CHECK(token.server == text(vector, "server") && token.enrolment == text(vector, "enrolment"));
  }
}

TEST(token_is_found_in_the_whole_of_what_was_printed_and_not_among_several) {
  const auto vector = check::vectors("tokens.txt").front();
  const auto token = text(vector, "token");
  const auto printed = "Send:\n\n    fedclient join --token " + token + "\n\nor its --token " + token + " alone.\n";
  CHECK(decode_token(printed).name == text(vector, "name"));
  CHECK_THROWS(Stop, decode_token("one " + token + "\ntwo " + token + "x"));
}

// Of the malformed messages those that a client may be sent: entries and manifests of models, chunks, plans.

/// Whether a manifest counts for a client that has this schema.
bool fits(const Manifest& manifest, const Schema& schema) {
  CHECK(!is_manifest_of(std::string(32, '\0'), manifest, schema));
  return is_manifest_of(model_digest(manifest).sha256(), manifest, schema);
}

/// A kernel F32 (1, 2), then a step I64 (), as the vectors have it.
Schema vectors_schema() {
  Schema schema;
  schema.Add()->set_name("kernel");
  schema[0].set_dtype(v1::DATA_TYPE_FLOAT32);
  schema[0].add_shape(1);
  schema[0].add_shape(2);
  schema.Add()->set_name("step");
  schema[1].set_dtype(v1::DATA_TYPE_INT64);
  return schema;
}

TEST(malformed_entries_are_refused) {
  for (const auto& vector : check::vectors("malformed.txt")) {
    // Entries in other encodings come in updates, which only a server reads.
    if (text(vector, "type") != "TensorEntry" || starts_with(text(vector, "case"), "encoded:")) continue;
    Manifest manifest;
    *manifest.Add() = parse<v1::TensorEntry>(vector);
    // A malformed one fits no sound schema, so not this one; a sound one fits the schema that has it.
    auto schema = vectors_schema();
    schema.RemoveLast();
    if (vector.at("reason").has_null_value()) schema[0] = manifest[0].spec();
    CHECK(fits(manifest, schema) == vector.at("reason").has_null_value());
  }
}

TEST(malformed_manifests_are_refused) {
  for (const auto& vector : check::vectors("malformed.txt")) {
    if (text(vector, "type") != "ManifestPart") continue;
    const auto part = parse<v1::ManifestPart>(vector);
    CHECK(fits(part.entries(), vectors_schema()) == vector.at("reason").has_null_value());
  }
}

TEST(malformed_chunks_are_refused) {
  for (const auto& vector : check::vectors("malformed.txt")) {
    if (text(vector, "type") != "Chunk") continue;
    const auto read = [&] { return new_in_chunk(parse<v1::Chunk>(vector), 8, 16, 10); };
    if (vector.at("reason").has_null_value())
      read();
    else
      CHECK_THROWS(Trouble, read());
  }
  CHECK(new_in_chunk(make_chunk(2, "abcd"), 4, 10, 10) == "cd");
  CHECK(new_in_chunk(make_chunk(0, "abcd"), 9, 10, 10).empty());
}
