/// As much of a test framework as these tests need: named tests, checks that say where, and the project's byte vectors.
#pragma once

#include <google/protobuf/struct.pb.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace check {

struct Test {
  Test(std::string name, std::function<void()> run);
};

/// Fails the test that runs, with the place.
void fail(const char* file, int line, const std::string& what);

/// A new folder, which is gone when all tests have run.
std::string folder();

/// The cases of a file of tests/wire/vectors: comments, then blocks of `key: JSON` lines.
using Vector = std::map<std::string, google::protobuf::Value>;
std::vector<Vector> vectors(const std::string& file);

/// The bytes of hexadecimal digits.
std::string unhex(const std::string& digits);

}  // namespace check

#define TEST(name)                                   \
  static void name();                                \
  static const check::Test name##_test(#name, name); \
  static void name()

#define CHECK(condition) \
  if (!(condition)) check::fail(__FILE__, __LINE__, #condition)

#define CHECK_THROWS(kind, expression)                                             \
  do {                                                                             \
    bool thrown = false;                                                           \
    try {                                                                          \
      static_cast<void>(expression);                                               \
    } catch (const kind&) {                                                        \
      thrown = true;                                                               \
    }                                                                              \
    if (!thrown) check::fail(__FILE__, __LINE__, #expression " throws no " #kind); \
  } while (false)
