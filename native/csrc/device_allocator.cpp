#include "device_allocator.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace vnpu {

namespace {

constexpr std::size_t alignment = 512;  // what torch's caching allocator counts on

struct Served {
    std::mutex mutex;  // guards everything below
    std::array<std::shared_ptr<Arena>, most_devices> by_device;
    std::vector<std::shared_ptr<Arena>> ever;
};

// Never destroyed: torch frees blocks until the very end of the process.
Served& served() {
    static Served& one = *new Served;
    return one;
}

// An arena that was served once and is empty may be followed by another at the same addresses.
void make_way(std::vector<std::shared_ptr<Arena>>& ever, const Arena& next) {
    const auto overlaps = [&next](const std::shared_ptr<Arena>& each) {
        return each->contains(next.base()) || next.contains(each->base());
    };
    const auto in_the_way = [&](const std::shared_ptr<Arena>& each) { return overlaps(each) && each->live_bytes() != 0; };
    if (std::any_of(ever.begin(), ever.end(), in_the_way)) {
        throw std::invalid_argument("the arena's range overlaps one that was served before and has live blocks");
    }
    std::erase_if(ever, overlaps);
}

}  // namespace

void serve_device(int device, const std::shared_ptr<Arena>& arena) {
    if (device < 0 || device >= most_devices) {
        throw std::invalid_argument("device " + std::to_string(device) + " is not one of 0 to " +
                                    std::to_string(most_devices - 1));
    }
    Served& all = served();
    const std::lock_guard lock(all.mutex);
    if (arena != nullptr && std::find(all.ever.begin(), all.ever.end(), arena) == all.ever.end()) {
        make_way(all.ever, *arena);
        all.ever.push_back(arena);
    }
    all.by_device[static_cast<std::size_t>(device)] = arena;
}

}  // namespace vnpu

void* vnpu_malloc(ssize_t size, int device, void*) {
    if (size <= 0 || device < 0 || device >= vnpu::most_devices) {
        return nullptr;
    }
    vnpu::Served& all = vnpu::served();
    const std::lock_guard lock(all.mutex);
    const auto& arena = all.by_device[static_cast<std::size_t>(device)];
    if (arena == nullptr) {
        return nullptr;
    }
    const std::uintptr_t block = arena->allocate(static_cast<std::size_t>(size), vnpu::alignment);
    if (block == 0) {
        arena->spilled(static_cast<std::size_t>(size));
    }
    return reinterpret_cast<void*>(block);
}

void vnpu_free(void* block, ssize_t, int, void*) {
    vnpu::Served& all = vnpu::served();
    const std::lock_guard lock(all.mutex);
    const auto address = reinterpret_cast<std::uintptr_t>(block);
    for (const auto& arena : all.ever) {
        if (arena->contains(address)) {
            arena->free(address);
            return;
        }
    }
}
