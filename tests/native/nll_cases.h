// The likelihood kernels under a sanitizer: see cases.cpp.
#pragma once

#include <functional>
#include <string>

// Runs small float calls of three kinds and every row disposition. Each array is in a heap block of
// exactly its size. Calls expect(good, what) for each result.
void run_nll(const std::function<void(bool, const std::string&)>& expect);
