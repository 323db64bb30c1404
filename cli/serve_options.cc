#include "cli/serve_options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <vector>

#include "base/check.h"

extern char** environ;

namespace lowkey::cli {
namespace {

std::string variable_name(const std::string& name) {
  std::string variable = "LOWKEY_" + name;
  for (char& c : variable) c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return variable;
}

// Declares one option per field of ServeConfig.
class OptionBinder {
 public:
  explicit OptionBinder(CLI::App& app) : app_(app) {}

  void text(const char* name, std::string& value, const char* help) {
    bind(name, value, help)->capture_default_str();
  }
  void secret(const char* name, std::string& value, const char* help) { bind(name, value, help); }
  void number(const char* name, int& value, int low, int high, const char* help) {
    bind(name, value, help)->check(CLI::Range(low, high))->capture_default_str();
  }
  void choice(const char* name, std::string& value, std::initializer_list<const char*> allowed,
              const char* help) {
    bind(name, value, help)
        ->check(CLI::IsMember(std::set<std::string>(allowed.begin(), allowed.end())))
        ->capture_default_str();
  }
  void bytes(const char* name, uint64_t& value, uint64_t low, const char* help) {
    const auto check = [low](const std::string& text) -> std::string {
      const auto parsed = parse_bytes(text);
      if (!parsed.ok()) return parsed.error().message;
      if (*parsed < low) return fmt::format("expected at least {}, found {}", format_bytes(low), text);
      return {};
    };
    variables_.emplace(variable_name(name), std::string("--") + name);
    app_.add_option_function<std::string>(
            std::string("--") + name, [&value](const std::string& text) { value = *parse_bytes(text); }, help)
        ->check(CLI::Validator(check, "SIZE"))
        ->take_last()
        ->default_str(format_bytes(value));
  }

  const std::map<std::string, std::string>& variables() const { return variables_; }  // variable -> flag

 private:
  template <class T>
  CLI::Option* bind(const char* name, T& value, const char* help) {
    variables_.emplace(variable_name(name), std::string("--") + name);
    return app_.add_option(std::string("--") + name, value, help)->take_last();
  }

  CLI::App& app_;
  std::map<std::string, std::string> variables_;
};

// Declares the option of one field, `name`, if there is one.
class OneOption {
 public:
  OneOption(CLI::App& app, std::string_view name) : binder_(app), name_(name) {}

  void text(const char* name, std::string& value, const char* help) {
    if (is(name)) binder_.text(name, value, help);
  }
  void secret(const char* name, std::string& value, const char* help) {
    if (is(name)) binder_.secret(name, value, help);
  }
  void number(const char* name, int& value, int low, int high, const char* help) {
    if (is(name)) binder_.number(name, value, low, high, help);
  }
  void choice(const char* name, std::string& value, std::initializer_list<const char*> allowed,
              const char* help) {
    if (is(name)) binder_.choice(name, value, allowed, help);
  }
  void bytes(const char* name, uint64_t& value, uint64_t low, const char* help) {
    if (is(name)) binder_.bytes(name, value, low, help);
  }

  bool found() const { return !binder_.variables().empty(); }

 private:
  bool is(const char* name) const { return name_ == name; }

  OptionBinder binder_;
  const std::string_view name_;
};

// LOWKEY_ variables as flags. CLI11's own variables lose against its config file, so they go in front of the
// real flags, where they beat the file and lose to a flag. A misspelt variable must not be ignored.
std::vector<std::string> variables_as_flags(const std::map<std::string, std::string>& known) {
  std::vector<std::string> flags;
  for (char** entry = environ; *entry; ++entry) {
    const std::string_view text(*entry);
    const std::string name(text.substr(0, text.find('=')));
    if (!name.starts_with("LOWKEY_")) continue;
    const auto flag = known.find(name);
    if (flag == known.end()) {
      throw CLI::ValidationError(name, "unknown variable; `lowkey serve --help` lists the settings");
    }
    flags.push_back(flag->second + "=" + std::string(text.substr(std::min(text.size(), name.size() + 1))));
  }
  return flags;
}

class Describer {
 public:
  void text(const char* name, const std::string& value, const char*) {
    line(name, value.empty() ? "-" : value);
  }
  void secret(const char* name, const std::string& value, const char*) {
    line(name, value.empty() ? "-" : "(set)");
  }
  void number(const char* name, int value, int, int, const char*) { line(name, std::to_string(value)); }
  void choice(const char* name, const std::string& value, std::initializer_list<const char*>, const char*) {
    line(name, value);
  }
  void bytes(const char* name, uint64_t value, uint64_t, const char*) { line(name, format_bytes(value)); }
  std::string take() { return std::move(out_); }

 private:
  void line(const char* name, const std::string& value) {
    out_ += fmt::format("{}{}={}", out_.empty() ? "" : " ", name, value);
  }
  std::string out_;
};

}  // namespace

ParsedOptions parse_serve_options(int argc, char** argv, bool print) {
  ParsedOptions parsed;
  CLI::App app("One process of a lowkey cluster; start them together with mpirun.",
               std::string("lowkey ") + argv[0]);
  OptionBinder binder(app);
  ServeConfig::visit_fields(parsed.config, binder);
  app.get_option("--model")->required();
  app.set_config("--config", "", "settings file: lines of name=value, names as the flags");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.footer(
      "Every setting is also a variable (LOWKEY_KV_BYTES=1GiB) and a line of the --config file "
      "(kv-bytes=1GiB).\n"
      "A flag beats a variable, a variable beats the file.\n"
      "Ranks: 1 coordinator + T*R workers + S stores; without --tp, --replicas and --stores: 1 + (N-2) + 1.\n"
      "Exit codes: 0 done, 2 usage, 3 bad input file, 4 runtime failure.");
  try {
    auto variables = binder.variables();
    variables.emplace("LOWKEY_CONFIG", "--config");
    std::vector<std::string> arguments = variables_as_flags(variables);
    arguments.insert(arguments.end(), argv + 1, argv + argc);
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    app.parse(std::move(arguments));
    if (parsed.config.disk_bytes > 0 && parsed.config.disk.empty())
      throw CLI::ValidationError("--disk-bytes", "expected --disk FOLDER beside it, found none");
  } catch (const CLI::CallForHelp&) {
    if (print) std::fputs(app.help().c_str(), stdout);
    parsed.exit_code = 0;
  } catch (const CLI::ParseError& error) {
    if (print) std::fprintf(stderr, "lowkey %s: %s\n", argv[0], error.what());
    parsed.exit_code = 2;
  }
  return parsed;
}

void add_serve_setting(CLI::App& command, std::string_view name, ServeConfig& config) {
  OneOption option(command, name);
  ServeConfig::visit_fields(config, option);
  LOWKEY_CHECK(option.found(), "setting {}", name);
}

kernels::DType dtype_of(const ServeConfig& config) {
  return config.dtype == "fp32" ? kernels::DType::kF32 : kernels::DType::kBf16;
}

std::string describe(const ServeConfig& config) {
  Describer describer;
  ServeConfig::visit_fields(config, describer);
  return describer.take();
}

}  // namespace lowkey::cli
