// What to do about a vendor's error numbers.
#pragma once

#include <cstdint>
#include <string>

namespace vnpu {

struct Remedy {
    std::int64_t code;
    const char* name;
    const char* what;
};

// Nullptr where the code is not in the table.
const Remedy* cuda_remedy(std::int64_t code);
const Remedy* ascend_remedy(std::int64_t code);

// Ascend's messages name a cause more closely than the number does, e.g. EL0009. Nullptr where none is known in `text`;
// the code of what is returned is 0.
const Remedy* ascend_message_remedy(const std::string& text);

}  // namespace vnpu
