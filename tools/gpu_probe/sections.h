// The probe's settings and its sections, which write their rows to a report. An exception that
// leaves a section means that the device is lost.
#pragma once

#include <string>

#include "calls.h"
#include "contest.h"
#include "report.h"
#include "variants.h"

namespace vae_fused::probe {

struct Settings {
  Device device;
  Faults faults;
  std::string only;  // a regular expression; empty: everything
  double seconds = 60;
  bool tiny = false;  // sizes for the emulated device
  bool list = false;  // names only

  // Whether `only` selects a name. Throws std::invalid_argument if it is not a regular expression.
  bool wants(const std::string& name) const;
  // The kernels of the emulated device are compiled to merge tiles from 12 blocks on.
  Sizes sizes() const {
    return tiny ? Sizes{device.sms, 12, kTile} : Sizes{device.sms, 2048, 8192};
  }
};

void run_correctness(const Settings& settings, Report& report);
void run_bandwidth(const Settings& settings, Report& report);
void run_profile(const Settings& settings, Report& report);

}  // namespace vae_fused::probe
