// Text for calibration and evaluation, as windows of tokens.
//
// A source is a file, or a folder whose *.txt, *.jsonl, *.txt.xz and *.jsonl.xz files are read in name order.
// A .jsonl file holds one document a line, as an object with a string `text`; any other file is one document
// of UTF-8 text. A name that ends in .xz is decompressed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"
#include "coordinator/text/tokenizer.h"

namespace lowkey::cli {

// What a source may hold in all, decompressed.
inline constexpr uint64_t kMaxSourceBytes = 2ull << 30;

// Errors: kBadInput naming file, line, expected and found; a source without any text is one.
Result<std::vector<std::string>> read_documents(const std::filesystem::path& source);

// `count` windows of exactly `length` tokens, cut at evenly spaced places of the source; fewer where the
// source is too short for as many that do not overlap. A window starts at a word; where a document ends
// inside it, the end-of-text token follows (if the tokenizer has one), and the next document. The same source
// and numbers give the same windows on every machine. Errors: as above, or when there is no whole window.
Result<std::vector<std::vector<int32_t>>> read_windows(const coordinator::Tokenizer& tokenizer,
                                                       const std::filesystem::path& source, int length,
                                                       int count);

}  // namespace lowkey::cli
