// A static program that checks and times the kernels on a GPU. It needs no torch, only a driver.
//
//   probe [--section correctness|bandwidth|profile] [--out FILE] [--seconds N] [--only REGEX]
//         [--list] [--tiny]
//
//   --section   default: correctness, then bandwidth
//   --out       append JSON lines to FILE and print a summary of each; default: print JSON lines
//   --seconds   time for bandwidth, default 60; contests that do not fit are reported as skipped
//   --only      run only names that REGEX (POSIX extended) matches
//   --list      print the names
//   --tiny      use small tensors, for the emulated device
//
// Exit status: 0 if everything is right, 1 if something is wrong, 2 if there is no device.
//
// Each line is an object with a "kind":
//
//   device       name, compute_capability, sms, l2_bytes, memory_bytes, driver, runtime
//   correctness  case, access, direction, dtype
//                output         the worst of the outputs, to which the next three belong
//                max_error      absolute
//                share_of_tolerance
//                at             the element; -2 if something was written out of bounds
//                status
//                The oracle of a call are the CPU kernels. The oracle of a variant (access
//                "variant") is the shipped kernel, that of a roof (access "roof") the host.
//   bandwidth    one contender of a contest
//                case, contest, contender, direction, dtype, view, log2_elements
//                group          shipped, copy, roof or variant
//                mode           stream (plain launches) or graph (replays of a captured batch)
//                bytes          the least that the call has to move
//                sets           of tensors, over which launches rotate
//                rounds         of measurements
//                us             time of a launch, the median of the rounds
//                us_least       the least
//                us_spread      half of the distance between the quartiles
//                gb_s           bytes / us
//                share_of_copy  the median over rounds of the copy's time over this one's
//                share_of_roof  the same with the fastest roof of the contest
//                status
//                Kernels of the probe have registers, local_bytes, shared_bytes and
//                resident_blocks (per SM), roofs also vectors, blocks and bytes_in_flight (per
//                SM). Variants have keys, loads, blocks, grid, ticket, max_error, kl_error, and
//                identical: whether z, or the gradients, have the bits of the shipped kernel.
//   profile      case, bytes, launches (the first is a warm-up), status
//   skipped      section, case, reason
//   error        error, status: the device was lost
//   summary      passed, failed, skipped, seconds, status
//
// The status is PASS or FAIL. A row that failed by an exception has an error instead of figures.
// A variant with wrong results is not timed.
//
// The environment variable VAE_FUSED_PROBE_FAULT plants a fault that the checks have to find:
// with "noise" the device begins one block of noise too far, with "variant" the variants use
// another key.
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
