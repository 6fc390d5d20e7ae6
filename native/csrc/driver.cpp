#include "driver.h"

#include <cerrno>

#include "ascend.h"
#include "cuda.h"
#include "host.h"

namespace vnpu {

void Driver::map(Address va, Handle handle, bool writable) {
    const Placement placement{va, handle, writable};
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
    if (name == "ascend") {
        return open_ascend_driver(device, options);
    }
    if (name == "cuda") {
        return open_cuda_driver(device, options);
    }
    throw errno_error("open_driver", EINVAL, quoted + " is unknown", "use one of: host, ascend, cuda");
}

}  // namespace vnpu
