// Address space of this process: ranges in which nothing is mapped but which nobody else gets either.
#pragma once

#include <cstddef>

#include "driver.h"
#include "fd.h"

namespace vnpu {

constexpr std::size_t huge_page = std::size_t{2} << 20;  // Ascend's granularity too

inline void* pointer(Address va) { return reinterpret_cast<void*>(va); }
inline Address address(const void* p) { return reinterpret_cast<Address>(p); }

// Address of `size` inaccessible bytes at a multiple of `huge_page`. Throws DriverError.
Address reserve_anywhere(std::size_t size);

// The same exactly at `hint`, if nothing is there. Throws DriverError.
void reserve_at(Address hint, std::size_t size);

// Make a reserved range inaccessible again, whatever is mapped there. False: the kernel refused, and what was mapped
// may still be.
bool hide(Address va, std::size_t size);

// Map all of a file over a reserved range. 0 or an errno.
int show(Address va, std::size_t size, const Fd& file, bool writable);

// Give every page of a mapped range its memory and its entry in the page table. 0 or an errno.
int populate(Address va, std::size_t size, bool writable);

// Put private memory, populated, over a reserved range. 0 or an errno.
int furnish(Address va, std::size_t size);

// What to do about an errno of the above.
const char* mapping_remedy(int error);

// A file mapped for the time of a scope. Throws DriverError.
class Window {
   public:
    Window(const Fd& file, std::size_t size);
    Window(const Window&) = delete;
    Window& operator=(const Window&) = delete;
    ~Window();
    Address base() const { return base_; }

   private:
    Address base_;
    std::size_t size_;
};

}  // namespace vnpu
