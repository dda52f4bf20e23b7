// The probe's sections. Each writes its rows to the report and returns false once it could not go
// on.
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

  // Whether a name is wanted. Throws std::invalid_argument.
  bool wants(const std::string& name) const;
  // The emulated device has its kernels compiled to have enough blocks with 12.
  Sizes sizes() const {
    return tiny ? Sizes{device.sms, 12, kTile} : Sizes{device.sms, 2048, 8192};
  }
};

void run_correctness(const Settings& settings, Report& report);
void run_bandwidth(const Settings& settings, Report& report);
void run_profile(const Settings& settings, Report& report);

}  // namespace vae_fused::probe
