#include "durable.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace fedstream::client {
namespace {

/// An open file, closed in any case.
class Handle {
 public:
  Handle(const fs::path& file, int flags) : file_(file), descriptor_(::open(file.c_str(), flags | O_CLOEXEC, 0600)) {
    check(descriptor_);
  }
  ~Handle() { ::close(descriptor_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  void write(std::string_view data) {
    while (!data.empty()) data.remove_prefix(check(::write(descriptor_, data.data(), data.size())));
  }

  std::string read(std::uint64_t offset, std::uint64_t length) {
    struct stat facts {};
    check(::fstat(descriptor_, &facts));
    const auto size = static_cast<std::uint64_t>(facts.st_size);
    std::string data(offset < size ? std::min(length, size - offset) : 0, '\0');
    std::size_t have = 0;
    while (have < data.size()) {
      const auto count = check(::pread(descriptor_, data.data() + have, data.size() - have, offset + have));
      if (count == 0) break;
      have += count;
    }
    data.resize(have);
    return data;
  }

  void sync() { check(::fsync(descriptor_)); }

 private:
  std::size_t check(ssize_t result) const {
    if (result < 0) throw fs::filesystem_error("file", file_, std::error_code(errno, std::generic_category()));
    return static_cast<std::size_t>(result);
  }

  fs::path file_;
  int descriptor_;
};

}  // namespace

void write_durably(const fs::path& file, std::string_view data) {
  const fs::path temporary = file.string() + kTemporary;
  Handle(temporary, O_WRONLY | O_CREAT | O_TRUNC).write(data);
  rename_durably(temporary, file);
}

void rename_durably(const fs::path& temporary, const fs::path& file) {
  Handle(temporary, O_RDONLY).sync();
  fs::rename(temporary, file);
  const auto folder = file.parent_path();
  Handle(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY).sync();
}

void append(const fs::path& file, std::string_view data) { Handle(file, O_WRONLY | O_CREAT | O_APPEND).write(data); }

std::string read_part(const fs::path& file, std::uint64_t offset, std::uint64_t length) {
  return Handle(file, O_RDONLY).read(offset, length);
}

std::string read_file(const fs::path& file) { return read_part(file, 0, UINT64_MAX); }

void make_folder(const fs::path& folder) {
  if (folder.empty() || fs::is_directory(folder)) return;
  make_folder(folder.parent_path());
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    throw fs::filesystem_error("folder", folder, std::error_code(errno, std::generic_category()));
  }
}

}  // namespace fedstream::client
