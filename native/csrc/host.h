// Device memory made of the host's own: see host.cpp.
#pragma once

#include <memory>

#include "driver.h"

namespace vnpu {

std::unique_ptr<Driver> open_host_driver(int device, const DriverOptions& options);

}  // namespace vnpu
