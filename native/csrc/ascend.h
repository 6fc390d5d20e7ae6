// Ascend NPUs: see ascend.cpp.
#pragma once

#include <memory>

#include "driver.h"

namespace vnpu {

std::unique_ptr<Driver> open_ascend_driver(int device, const DriverOptions& options);

}  // namespace vnpu
