// Which host memory is pinned, and by whom: by `pin` (made for it) or by `register_host` (was there already).
#pragma once

#include <cstddef>
#include <map>

#include "streams.h"

namespace vnpu {

enum class Pinning { pinned, registered };

// Pure book-keeping, no lock. Every verb throws DriverError and changes nothing, or has taken effect.
class Pinned {
   public:
    // Whole pages that nothing of this overlaps.
    void check(const char* call, Address base, std::size_t size) const;
    void add(Address base, std::size_t size, Pinning how) { ranges_.emplace(base, Range{size, how}); }
    // The size of the range that was pinned this way at `base`.
    std::size_t find(const char* call, Address base, Pinning how) const;
    void remove(Address base) { ranges_.erase(base); }

   private:
    struct Range {
        std::size_t size;
        Pinning how;
    };

    std::map<Address, Range> ranges_;
};

// Whether this process may write to the byte at `address`, as its memory map has it.
bool mapped_writable(Address address);

}  // namespace vnpu
