#include "driver.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include "host.h"

namespace vnpu {

namespace {

std::string describe(const std::string& call, std::int64_t code, const std::string& name, const std::string& message,
                     const std::string& remedy) {
    return call + ": " + message + " [" + name + " " + std::to_string(code) + "] (" + remedy + ")";
}

}  // namespace

DriverError::DriverError(std::string call_, std::int64_t code_, std::string name_, const std::string& message,
                         std::string remedy_)
    : std::runtime_error(describe(call_, code_, name_, message, remedy_)),
      call(std::move(call_)),
      code(code_),
      name(std::move(name_)),
      remedy(std::move(remedy_)) {}

DriverError errno_error(std::string call, int error, const std::string& message, std::string remedy) {
    const char* known = strerrorname_np(error);
    return {std::move(call), error, known != nullptr ? known : "unknown", message, std::move(remedy)};
}

void Driver::map(Address va, Handle handle) {
    const Placement placement{va, handle};
    map_many({&placement, 1});
}

void Driver::unmap(Address va) { unmap_many({&va, 1}); }

std::unique_ptr<Driver> open_driver(std::string_view name, int device, const DriverOptions& options) {
    const std::string quoted = "driver '" + std::string(name) + "'";
    if (device < 0) {
        throw errno_error("open_driver", EINVAL, "device " + std::to_string(device) + " is negative",
                          "number devices from 0");
    }
    if (name == "host") {
        return open_host_driver(device, options);
    }
    if (name == "ascend" || name == "cuda") {
        throw errno_error("open_driver", ENOSYS, quoted + " is not supported yet", "use driver 'host'");
    }
    throw errno_error("open_driver", EINVAL, quoted + " is unknown", "use one of: host (later: ascend, cuda)");
}

}  // namespace vnpu
