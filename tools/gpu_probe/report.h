// Writes one JSON object per line and counts passed and failed rows. Every line is flushed at once,
// so that a run that is cut short keeps its results.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace vae_fused::probe {

// One JSON object, built field by field.
class Row {
 public:
  explicit Row(const std::string& kind) { add("kind", kind); }

  Row& add(const std::string& name, const std::string& value) {
    return raw(name, "\"" + escaped(value) + "\"");
  }
  Row& add(const std::string& name, const char* value) { return add(name, std::string(value)); }
  Row& add(const std::string& name, bool value) { return raw(name, value ? "true" : "false"); }
  Row& add(const std::string& name, double value) {
    if (!std::isfinite(value)) return raw(name, "null");
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", value);
    return raw(name, text);
  }
  template <typename Integer, std::enable_if_t<std::is_integral_v<Integer>, int> = 0>
  Row& add(const std::string& name, Integer value) {
    return raw(name, std::to_string(value));
  }

  std::string line() const { return "{" + text_ + "}"; }

 private:
  static std::string escaped(const std::string& value) {
    std::string out;
    for (const char c : value) {
      if (c == '"' || c == '\\') out += '\\';
      out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
    }
    return out;
  }
  Row& raw(const std::string& name, const std::string& value) {
    text_ += (text_.empty() ? "\"" : ", \"") + name + "\": " + value;
    return *this;
  }

  std::string text_;
};

// Writes rows to a file and a short line about each to stdout. Without a file, rows go to stdout.
class Report {
 public:
  explicit Report(const std::string& path) {
    if (path.empty()) return;
    file_ = std::fopen(path.c_str(), "a");
    if (!file_) throw std::runtime_error("cannot write " + path);
  }
  Report(const Report&) = delete;
  ~Report() {
    if (file_) std::fclose(file_);
  }

  void write(const Row& row, const std::string& summary) {
    std::FILE* const to = file_ ? file_ : stdout;
    std::fprintf(to, "%s\n", row.line().c_str());
    std::fflush(to);
    if (!file_) return;
    std::printf("%s\n", summary.c_str());
    std::fflush(stdout);
  }

  // Writes a row with its status as the last field. Returns `passes`.
  bool check(Row row, bool passes, const std::string& summary) {
    ++(passes ? passed : failed);
    const std::string status = passes ? "PASS" : "FAIL";
    write(row.add("status", status), status + "  " + summary);
    return passes;
  }

  int passed = 0, failed = 0, skipped = 0;

 private:
  std::FILE* file_ = nullptr;
};

}  // namespace vae_fused::probe
