/// Files: the one way in which they are made durable (temporary file, fsync, rename, fsync of the folder), and reading.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace fedstream::client {

namespace fs = std::filesystem;

constexpr char kTemporary[] = ".partial";

/// Make `file` hold `data`, whole or not at all, for its owner only; once this returns, a power cut cannot undo it.
/// @throws fs::filesystem_error
void write_durably(const fs::path& file, std::string_view data);

/// Make what was written to `temporary` durable, and give it its name.
void rename_durably(const fs::path& temporary, const fs::path& file);

/// Add bytes to the end of a file, which is made for its owner only if it is not there.
void append(const fs::path& file, std::string_view data);

/// The bytes from `offset` on, `length` at most.
std::string read_part(const fs::path& file, std::uint64_t offset, std::uint64_t length);

/// All of it.
std::string read_file(const fs::path& file);

/// Make a folder that is its owner's alone, with those above it.
void make_folder(const fs::path& folder);

}  // namespace fedstream::client
