// Our declarations of vendors' structures and enumerations as numbers, so that they can be compared with the headers.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace vnpu {

// "aclrtPhysicalMemProp" -> size, "aclrtPhysicalMemProp.memAttr" -> offset, "ACL_HBM_MEM_HUGE" -> value.
std::vector<std::pair<std::string, std::int64_t>> layouts();

}  // namespace vnpu
