#include "cli/text_source.h"

#include <lzma.h>

#include <algorithm>
#include <boost/json.hpp>
#include <fstream>

namespace lowkey::cli {
namespace {

namespace fs = std::filesystem;

Error bad(const fs::path& file, const std::string& problem) {
  return Error{Code::kBadInput, fmt::format("{}: {}", file.string(), problem), {}};
}

bool ends_with(const std::string& name, std::string_view end) {
  return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

Result<std::string> read_bytes(const fs::path& file) {
  std::error_code error;
  const uint64_t bytes = fs::file_size(file, error);
  if (error) return bad(file, "expected a readable file: " + error.message());
  if (bytes > kMaxSourceBytes)
    return bad(file, fmt::format("expected at most {} bytes, found {}", kMaxSourceBytes, bytes));
  std::ifstream in(file, std::ios::binary);
  std::string text(bytes, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(bytes))) return bad(file, "cannot be read");
  return text;
}

class XzDecoder {
 public:
  XzDecoder() : stream_(LZMA_STREAM_INIT) {}
  ~XzDecoder() { lzma_end(&stream_); }
  XzDecoder(const XzDecoder&) = delete;
  XzDecoder& operator=(const XzDecoder&) = delete;

  Result<std::string> decode(const fs::path& file, const std::string& packed) {
    // 128 MiB of memory suffice for every preset of xz.
    if (lzma_stream_decoder(&stream_, 128ull << 20, LZMA_CONCATENATED) != LZMA_OK)
      return Error{Code::kInternal, "liblzma: no decoder", {}};
    std::string text;
    std::vector<uint8_t> piece(1 << 20);
    stream_.next_in = reinterpret_cast<const uint8_t*>(packed.data());
    stream_.avail_in = packed.size();
    for (lzma_ret state = LZMA_OK; state != LZMA_STREAM_END;) {
      stream_.next_out = piece.data();
      stream_.avail_out = piece.size();
      state = lzma_code(&stream_, LZMA_FINISH);
      if (state != LZMA_OK && state != LZMA_STREAM_END)
        return bad(file, fmt::format("expected xz data, found a damaged stream at byte {} (liblzma error {})",
                                     packed.size() - stream_.avail_in, static_cast<int>(state)));
      text.append(reinterpret_cast<const char*>(piece.data()), piece.size() - stream_.avail_out);
      if (text.size() > kMaxSourceBytes)
        return bad(file, fmt::format("expected at most {} bytes of text", kMaxSourceBytes));
    }
    return text;
  }

 private:
  lzma_stream stream_;
};

Status add_lines(const fs::path& file, std::string_view text, std::vector<std::string>& documents) {
  for (size_t line = 1; !text.empty(); ++line) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view row = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (row.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    boost::system::error_code error;
    const auto json = boost::json::parse(row, error);
    const auto* object = error ? nullptr : json.if_object();
    const auto* field = object ? object->if_contains("text") : nullptr;
    const auto* value = field ? field->if_string() : nullptr;
    if (!value)
      return bad(file, fmt::format("line {}: expected an object with a string \"text\", found {}", line,
                                   error ? error.message() : "something else"));
    documents.emplace_back(value->data(), value->size());
  }
  return {};
}

Status add_file(const fs::path& file, std::vector<std::string>& documents) {
  LOWKEY_ASSIGN(text, read_bytes(file));
  std::string name = file.filename().string();
  if (ends_with(name, ".xz")) {
    LOWKEY_ASSIGN(unpacked, XzDecoder().decode(file, text));
    text = std::move(unpacked);
    name.resize(name.size() - 3);
  }
  if (ends_with(name, ".jsonl")) return add_lines(file, text, documents);
  documents.push_back(std::move(text));
  return {};
}

Result<std::vector<fs::path>> files_of(const fs::path& source) {
  std::error_code error;
  if (!fs::is_directory(source, error)) return std::vector<fs::path>{source};
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(source, error)) {
    const std::string name = entry.path().filename().string();
    if (ends_with(name, ".txt") || ends_with(name, ".jsonl") || ends_with(name, ".txt.xz") ||
        ends_with(name, ".jsonl.xz"))
      files.push_back(entry.path());
  }
  if (error) return bad(source, "expected a readable folder: " + error.message());
  std::sort(files.begin(), files.end());
  if (files.empty()) return bad(source, "expected *.txt, *.jsonl, *.txt.xz or *.jsonl.xz files, found none");
  return files;
}

// Cuts windows out of documents as if these were one text.
class WindowCutter {
 public:
  WindowCutter(const coordinator::Tokenizer& tokenizer, const std::vector<std::string>& documents, int length)
      : tokenizer_(tokenizer), documents_(documents), length_(length) {}

  // The window whose text starts at or after byte `offset` of all documents; empty where the text ends before
  // it is full. `end`: the last byte that it may have needed.
  std::vector<int32_t> cut(uint64_t offset, uint64_t* end) const {
    size_t index = 0;
    uint64_t before = 0;
    while (index < documents_.size() && offset - before >= documents_[index].size())
      before += documents_[index++].size();
    std::vector<int32_t> window;
    uint64_t start = index < documents_.size() ? next_word(documents_[index], offset - before) : 0;
    for (; index < documents_.size() && window.size() < static_cast<size_t>(length_); ++index, start = 0) {
      start = append(documents_[index], start, window);
      *end = before + start;
      before += documents_[index].size();
    }
    if (window.size() < static_cast<size_t>(length_)) return {};
    window.resize(length_);
    return window;
  }

 private:
  // Behind the next white space, unless `offset` is the document's beginning.
  static uint64_t next_word(const std::string& text, uint64_t offset) {
    while (offset > 0 && offset < text.size() && !is_space(text[offset - 1])) ++offset;
    return offset;
  }
  static bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

  // Appends the document's tokens from byte `start` on, and the end-of-text token where it ends within the
  // window; returns the byte behind what was read. Text is tokenized by the piece, so that a long document
  // costs no more than its windows.
  uint64_t append(const std::string& text, uint64_t start, std::vector<int32_t>& window) const {
    const uint64_t wanted = length_ - window.size();
    // Tokens of usual text have about four bytes; where they have more, a longer piece is tried.
    for (uint64_t bytes = 8 * wanted;; bytes *= 2) {
      const uint64_t end = next_word(text, std::min<uint64_t>(text.size(), start + bytes));
      const auto ids = tokenizer_.encode(std::string_view(text).substr(start, end - start), false);
      if (ids.size() < wanted && end < text.size()) continue;
      window.insert(window.end(), ids.begin(), ids.end());
      if (ids.size() < wanted && tokenizer_.eos()) window.push_back(*tokenizer_.eos());
      return end;
    }
  }

  const coordinator::Tokenizer& tokenizer_;
  const std::vector<std::string>& documents_;
  int length_;
};

}  // namespace

Result<std::vector<std::string>> read_documents(const fs::path& source) {
  LOWKEY_ASSIGN(files, files_of(source));
  std::vector<std::string> documents;
  for (const fs::path& file : files) LOWKEY_TRY(add_file(file, documents));
  uint64_t bytes = 0;
  for (const std::string& document : documents) bytes += document.size();
  if (bytes == 0) return bad(source, "expected text, found none");
  if (bytes > kMaxSourceBytes)
    return bad(source, fmt::format("expected at most {} bytes of text, found {}", kMaxSourceBytes, bytes));
  return documents;
}

Result<std::vector<std::vector<int32_t>>> read_windows(const coordinator::Tokenizer& tokenizer,
                                                       const fs::path& source, int length, int count) {
  LOWKEY_ASSIGN(documents, read_documents(source));
  uint64_t bytes = 0;
  for (const std::string& document : documents) bytes += document.size();
  const WindowCutter cutter(tokenizer, documents, length);
  std::vector<std::vector<int32_t>> windows;
  uint64_t free_from = 0;
  for (int i = 0; i < count; ++i) {
    const uint64_t offset = static_cast<uint64_t>(static_cast<double>(bytes) * i / count);  // evenly spaced
    if (offset < free_from) continue;
    auto window = cutter.cut(offset, &free_from);
    if (!window.empty()) windows.push_back(std::move(window));
  }
  if (windows.empty())
    return bad(source, fmt::format("expected text for a window of {} tokens, found {} bytes", length, bytes));
  return windows;
}

}  // namespace lowkey::cli
