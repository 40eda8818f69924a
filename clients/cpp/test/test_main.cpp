/// Runs all tests, and counts.
#include <google/protobuf/util/json_util.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "check.h"

namespace check {
namespace {

std::map<std::string, std::function<void()>>& tests() {
  static std::map<std::string, std::function<void()>> all;  // filled before main
  return all;
}

int failures = 0;
std::vector<std::string> folders;

}  // namespace

Test::Test(std::string name, std::function<void()> run) { tests()[std::move(name)] = std::move(run); }

void fail(const char* file, int line, const std::string& what) {
  ++failures;
  std::printf("%s:%d: %s\n", file, line, what.c_str());
}

std::string folder() {
  std::string made = (std::filesystem::temp_directory_path() / "fedstream-XXXXXX").string();
  if (mkdtemp(made.data()) == nullptr) throw std::runtime_error("no folder for temporary files");
  folders.push_back(made);
  return made;
}

std::vector<Vector> vectors(const std::string& file) {
  std::ifstream lines(std::string(VECTORS) + "/" + file);
  std::vector<Vector> found;
  bool is_new = true;
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] == '#') {
      is_new = true;
      continue;
    }
    if (is_new) found.emplace_back();
    is_new = false;
    const auto colon = line.find(": ");
    const auto read =
        google::protobuf::util::JsonStringToMessage(line.substr(colon + 2), &found.back()[line.substr(0, colon)]);
    if (!read.ok()) throw std::runtime_error(file + ": a line is not as the README says: " + line);
  }
  if (found.empty()) throw std::runtime_error(file + " holds no case");
  return found;
}

std::string unhex(const std::string& digits) {
  std::string bytes;
  for (std::size_t at = 0; at < digits.size(); at += 2) bytes += char(std::stoi(digits.substr(at, 2), nullptr, 16));
  return bytes;
}

}  // namespace check

int main() {
  for (const auto& [name, run] : check::tests()) {
    try {
      run();
    } catch (const std::exception& error) {
      check::fail(name.c_str(), 0, std::string("threw ") + error.what());
    }
  }
  for (const auto& made : check::folders) std::filesystem::remove_all(made);
  std::printf("%zu tests, %d failures\n", check::tests().size(), check::failures);
  return check::failures == 0 ? 0 : 1;
}
