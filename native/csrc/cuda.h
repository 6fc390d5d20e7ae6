// NVIDIA GPUs: see cuda.cpp.
#pragma once

#include <memory>

#include "driver.h"

namespace vnpu {

std::unique_ptr<Driver> open_cuda_driver(int device, const DriverOptions& options);

}  // namespace vnpu
