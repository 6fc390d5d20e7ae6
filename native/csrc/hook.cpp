#include "hook.h"

#include <link.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string_view>

#include "relocations.h"

namespace vnpu {

namespace {

// What the hooked functions read, from any thread, at any time, without a lock. Arenas are only ever added.
constexpr std::size_t most_arenas = 16;
std::atomic<Arena*> active_arena{nullptr};
std::atomic<std::size_t> smallest_block{0};
std::array<std::atomic<Arena*>, most_arenas> known_arenas{};
std::atomic<std::size_t> known_count{0};
// All known arenas lie in [lowest, highest): one comparison tells almost every free that it is none of ours.
std::atomic<std::uintptr_t> lowest{std::numeric_limits<std::uintptr_t>::max()};
std::atomic<std::uintptr_t> highest{0};

// Set while this thread is inside an arena, whose books themselves allocate.
thread_local bool inside = false;

class Inside {
   public:
    Inside() { inside = true; }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;
    ~Inside() { inside = false; }
};

bool valid_alignment(std::size_t alignment) {
    return alignment >= sizeof(void*) && (alignment & (alignment - 1)) == 0;
}

int hooked_posix_memalign(void** out, std::size_t alignment, std::size_t size) {
    Arena* const arena = active_arena.load(std::memory_order_acquire);
    const bool wanted = arena != nullptr && !inside && size >= smallest_block.load(std::memory_order_relaxed);
    if (wanted && valid_alignment(alignment)) {
        const Inside guard;
        const std::uintptr_t block = arena->allocate(size, alignment);
        if (block != 0) {
            *out = reinterpret_cast<void*>(block);
            return 0;
        }
        arena->spilled(size);
    }
    return ::posix_memalign(out, alignment, size);
}

Arena* arena_of(std::uintptr_t address) {
    if (address < lowest.load(std::memory_order_acquire) || address >= highest.load(std::memory_order_acquire)) {
        return nullptr;
    }
    const std::size_t count = known_count.load(std::memory_order_acquire);
    for (std::size_t i = 0; i < count; ++i) {
        Arena* const arena = known_arenas[i].load(std::memory_order_relaxed);
        if (arena->contains(address)) {
            return arena;
        }
    }
    return nullptr;
}

void hooked_free(void* block) {
    Arena* const arena = arena_of(reinterpret_cast<std::uintptr_t>(block));
    if (arena == nullptr) {
        ::free(block);
        return;
    }
    const Inside guard;
    if (!arena->free(reinterpret_cast<std::uintptr_t>(block))) {
        // As libc does on an invalid pointer: going on would corrupt somebody's weights.
        std::fprintf(stderr, "vnpu arena: free of %p, where no live block starts\n", block);
        std::abort();
    }
}

void* hook_for(std::string_view symbol) {
    return symbol == "free" ? reinterpret_cast<void*>(&hooked_free) : reinterpret_cast<void*>(&hooked_posix_memalign);
}

const std::vector<std::string_view>& hooked_symbols() {
    static const std::vector<std::string_view> symbols{"posix_memalign", "free"};
    return symbols;
}

bool wanted_library(std::string_view path) {
    const std::size_t slash = path.rfind('/');
    const std::string_view name = path.substr(slash == std::string_view::npos ? 0 : slash + 1);
    const bool torch = name.starts_with("libc10.so") || name.starts_with("libtorch_cpu.so");
    const bool vllm = name.starts_with("_C") && path.find("/vllm/") != std::string_view::npos;
    return torch || vllm;
}

struct Walk {
    bool redirect;
    std::vector<HookedLibrary> libraries;
    std::exception_ptr error;
};

void visit_library(const dl_phdr_info& library, Walk& walk) {
    const Relocations relocations(library);
    std::size_t redirected = 0;
    for (const Slot& slot : relocations.slots(hooked_symbols())) {
        void* const hook = hook_for(slot.symbol);
        const bool already = std::atomic_ref<void*>(*slot.place).load(std::memory_order_acquire) == hook;
        if (!already && walk.redirect) {
            relocations.redirect(slot, hook);
        }
        redirected += already || walk.redirect ? 1 : 0;
    }
    if (redirected != 0) {
        walk.libraries.push_back({library.dlpi_name, redirected});
    }
}

// No exception may cross the loader's frames.
int visit(dl_phdr_info* library, std::size_t, void* data) {
    Walk& walk = *static_cast<Walk*>(data);
    try {
        if (library->dlpi_name != nullptr && wanted_library(library->dlpi_name)) {
            visit_library(*library, walk);
        }
        return 0;
    } catch (...) {
        walk.error = std::current_exception();
        return 1;
    }
}

std::vector<HookedLibrary> walk_libraries(bool redirect) {
    Walk walk{redirect, {}, nullptr};
    ::dl_iterate_phdr(visit, &walk);
    if (walk.error) {
        std::rethrow_exception(walk.error);
    }
    return walk.libraries;
}

// Never destroyed: a thread may free a block while the process exits.
struct Activation {
    std::mutex mutex;
    std::vector<std::shared_ptr<Arena>> arenas;
};

Activation& activation() {
    static auto* const the = new Activation;
    return *the;
}

void check_overlap(const Arena& arena, const std::vector<std::shared_ptr<Arena>>& others) {
    for (const auto& other : others) {
        if (arena.base() < other->base() + other->reserved() && other->base() < arena.base() + arena.reserved()) {
            throw std::invalid_argument("the arena overlaps one that was active before; activate that one again");
        }
    }
}

// Publish the arena to hooked_free before its first block can exist.
void remember(const std::shared_ptr<Arena>& arena, std::vector<std::shared_ptr<Arena>>& arenas) {
    check_overlap(*arena, arenas);
    if (arenas.size() == most_arenas) {
        throw std::runtime_error("16 arenas were active in this process already; use those again");
    }
    arenas.push_back(arena);
    known_arenas[arenas.size() - 1].store(arena.get(), std::memory_order_relaxed);
    known_count.store(arenas.size(), std::memory_order_release);
    lowest.store(std::min(lowest.load(), arena->base()), std::memory_order_release);
    highest.store(std::max(highest.load(), arena->base() + arena->reserved()), std::memory_order_release);
}

}  // namespace

std::size_t install_hook() {
    std::size_t slots = 0;
    for (const HookedLibrary& library : walk_libraries(true)) {
        slots += library.slots;
    }
    return slots;
}

std::vector<HookedLibrary> hooked_libraries() { return walk_libraries(false); }

void activate(const std::shared_ptr<Arena>& arena, std::size_t min_block) {
    Activation& state = activation();
    const std::lock_guard lock(state.mutex);
    if (arena == nullptr) {
        active_arena.store(nullptr, std::memory_order_release);
        return;
    }
    if (hooked_libraries().empty()) {
        throw std::runtime_error("no allocation is hooked: call install_hook() after torch was loaded");
    }
    if (std::find(state.arenas.begin(), state.arenas.end(), arena) == state.arenas.end()) {
        remember(arena, state.arenas);
    }
    smallest_block.store(min_block, std::memory_order_relaxed);
    active_arena.store(arena.get(), std::memory_order_release);
}

}  // namespace vnpu
