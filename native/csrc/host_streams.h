// Streams of the host driver: each is a thread that takes its work in order.
#pragma once

#include <functional>
#include <memory>

#include "streams.h"

namespace vnpu {

using CopyCheck = std::function<void(std::span<const CopyEntry>, CopyKind)>;  // throws DriverError

std::unique_ptr<Streams> open_host_streams(CopyCheck check);

}  // namespace vnpu
