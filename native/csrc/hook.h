// Lets torch, oneDNN and vLLM allocate from an arena without knowing: their calls of posix_memalign and free are
// redirected in the tables through which the loader bound them. Nothing of them is patched or rebuilt.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "arena.h"

namespace vnpu {

struct HookedLibrary {
    std::string path;
    std::size_t slots;
};

// Redirect every libc10, libtorch_cpu and vLLM `_C*` that is loaded now; again after more of them were loaded. Slots
// that lead to the hook, in all of them.
std::size_t install_hook();

std::vector<HookedLibrary> hooked_libraries();

// Hooked allocations of at least `min_block` bytes come from `arena` from now on; null: from libc. An arena that was
// active once is kept for ever, because blocks of it may be freed at any time until the process ends. Throws
// std::invalid_argument where it overlaps another such arena, std::runtime_error without hook or at the 17th arena.
void activate(const std::shared_ptr<Arena>& arena, std::size_t min_block);

}  // namespace vnpu
