// A static program that checks and times the kernels on a GPU without torch: it needs a driver and
// nothing else.
//
//   probe [--section correctness|bandwidth|profile] [--out FILE] [--seconds N] [--only REGEX]
//         [--list] [--tiny]
//
//   --section   default: correctness, then bandwidth
//   --out       appends JSON lines to FILE and prints a summary of each; default: JSON lines to
//   stdout
//   --seconds   of the bandwidth section, default 60; what does not fit is reported as skipped
//   --only      runs what has a match of REGEX (POSIX extended) in its name, as --list prints it
//   --tiny      small tensors, for the emulated device
//
// Exit status: 0 if everything is right, 1 if something is wrong, 2 if there is no device.
//
// Each line is an object with a "kind":
//
//   device       name, compute_capability, sms, l2_bytes, memory_bytes, driver, runtime
//   correctness  case, access, direction, dtype: what was run. output: the worst of its outputs,
//   with
//                max_error (absolute), share_of_tolerance and at (the element; -2: written out of
//                bounds). The oracle of calls are the CPU kernels, that of variants (access
//                "variant") the shipped kernels, that of roofs the host. status
//   bandwidth    one contender of a contest. case, contest, contender, group (shipped, copy, roof
//   or
//                variant), direction, dtype, view, log2_elements, mode (launches on a stream, or
//                replays of a graph), bytes (the least that the call moves), sets (of tensors that
//                launches rotate over), rounds, us (median of the rounds, per launch), us_least,
//                us_spread (half of the distance of the quartiles), gb_s, share_of_copy and
//                share_of_roof (medians of the ratios within rounds; the roof is the fastest in the
//                contest). Of kernels of the probe registers, local_bytes, shared_bytes and
//                resident_blocks (per SM); of roofs vectors, blocks and bytes_in_flight (per SM);
//                of variants keys, loads, blocks, grid and ticket, identical (whether z, or the
//                gradients, have the bits of the shipped kernel), max_error and kl_error. status
//   profile      case, bytes, launches (the first is a warm-up). status
//   skipped      section, case, reason
//   summary      passed, failed, skipped, seconds, status
//
// status is PASS or FAIL; a row that failed by an exception has an error instead of its figures.
//
// The environment variable VAE_FUSED_PROBE_FAULT plants a fault that has to be found: "noise" lets
// the device begin one block of noise too far, "variant" gives the variants another key.
#include <regex.h>

#include <cstdlib>

#include "roofs.h"
#include "sections.h"

namespace vae_fused::probe {

bool Settings::wants(const std::string& name) const {
  if (only.empty()) return true;
  regex_t pattern;
  if (regcomp(&pattern, only.c_str(), REG_EXTENDED | REG_NOSUB) != 0) {
    throw std::invalid_argument("--only " + only + " is not a regular expression");
  }
  const bool found = regexec(&pattern, name.c_str(), 0, nullptr, 0) == 0;
  regfree(&pattern);
  return found;
}

namespace {

struct Arguments {
  Settings settings;
  std::string section, out;
};

[[noreturn]] void usage(const std::string& problem) {
  std::fprintf(stderr,
               "probe: %s\nusage: probe [--section correctness|bandwidth|profile] [--out FILE] "
               "[--seconds N] [--only REGEX] [--list] [--tiny]\n",
               problem.c_str());
  std::exit(1);
}

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  Settings& settings = arguments.settings;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == argc) usage(option + " needs a value");
      return argv[++i];
    };
    if (option == "--section") {
      arguments.section = value();
    } else if (option == "--out") {
      arguments.out = value();
    } else if (option == "--only") {
      settings.only = value();
    } else if (option == "--seconds") {
      settings.seconds = std::atof(value().c_str());
    } else if (option == "--list") {
      settings.list = true;
    } else if (option == "--tiny") {
      settings.tiny = true;
    } else {
      usage("unknown option " + option);
    }
  }
  const std::string& s = arguments.section;
  if (!s.empty() && s != "correctness" && s != "bandwidth" && s != "profile") {
    usage("unknown section " + s);
  }
  try {
    settings.wants("");
  } catch (const std::invalid_argument& error) {
    usage(error.what());
  }
  const char* const fault = std::getenv("VAE_FUSED_PROBE_FAULT");
  if (fault) settings.faults = {fault == std::string("noise"), fault == std::string("variant")};
  return arguments;
}

void run_sections(const Arguments& arguments, Report& report) {
  const std::string& section = arguments.section;
  const Settings& settings = arguments.settings;
  if (section.empty() || section == "correctness") run_correctness(settings, report);
  if (section.empty() || section == "bandwidth") run_bandwidth(settings, report);
  if (section == "profile") run_profile(settings, report);
}

void write_device(const Device& device, Report& report) {
  const std::string capability = std::to_string(device.major) + "." + std::to_string(device.minor);
  Row row("device");
  row.add("name", device.name)
      .add("compute_capability", capability)
      .add("sms", device.sms)
      .add("l2_bytes", device.l2_bytes)
      .add("memory_bytes", device.memory_bytes)
      .add("driver", device.driver)
      .add("runtime", device.runtime);
  report.write(row, device.name + ", compute capability " + capability);
}

int run(int argc, char** argv) {
  Arguments arguments = parse(argc, argv);
  Report report(arguments.out);
  if (arguments.settings.list) {
    run_sections(arguments, report);
    return 0;
  }
#if defined(VAE_FUSED_EMULATOR)
  emu::config().sm_count = 1;  // so that a persistent grid has fewer blocks than tiles
#endif
  const Clock clock;
  try {
    arguments.settings.device = find_device();
    roofs(1).front().cost();  // throws if the program has no code for this device
  } catch (const CudaError& error) {
    std::fprintf(stderr, "probe: %s\n", error.what());
    return 2;
  }
  write_device(arguments.settings.device, report);
  try {
    run_sections(arguments, report);
  } catch (const std::exception& error) {
    report.check(Row("error").add("error", error.what()), false, error.what());
  }
  const int passed = report.passed, failed = report.failed, skipped = report.skipped;
  Row row("summary");
  row.add("passed", passed).add("failed", failed).add("skipped", skipped);
  row.add("seconds", clock.seconds()).add("status", failed ? "FAIL" : "PASS");
  report.write(row, std::to_string(passed) + " passed, " + std::to_string(failed) + " failed, " +
                        std::to_string(skipped) + " skipped");
  return failed || passed == 0 ? 1 : 0;
}

}  // namespace
}  // namespace vae_fused::probe

int main(int argc, char** argv) { return vae_fused::probe::run(argc, argv); }
