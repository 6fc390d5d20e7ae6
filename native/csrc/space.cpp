#include "space.h"

#include <sys/mman.h>

#include <cerrno>
#include <string>

#include "book.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace vnpu {

Address reserve_anywhere(std::size_t size) {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* const start = ::mmap(nullptr, size + huge_page, PROT_NONE, flags, -1, 0);
    if (start == MAP_FAILED) {
        throw errno_error("reserve", errno, "no " + std::to_string(size) + " bytes of address space",
                          "check ulimit -v and the size");
    }
    const Address base = (address(start) + huge_page - 1) / huge_page * huge_page;
    const std::size_t before = base - address(start);
    if (before != 0) {
        ::munmap(start, before);
    }
    ::munmap(pointer(base + size), huge_page - before);
    return base;
}

void reserve_at(Address hint, std::size_t size) {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    void* const start = ::mmap(pointer(hint), size, PROT_NONE, flags, -1, 0);
    if (start == MAP_FAILED) {
        throw errno_error("reserve", errno, std::to_string(size) + " bytes at " + hex(hint) + " cannot be had",
                          "choose a hint whose range is free, or 0");
    }
    if (address(start) != hint) {  // before Linux 4.17 the flag is not known and the address is only a wish
        ::munmap(start, size);
        throw errno_error("reserve", EEXIST, hex(hint) + " is taken", "choose a hint whose range is free, or 0");
    }
}

bool hide(Address va, std::size_t size) {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (::mmap(pointer(va), size, PROT_NONE, flags | MAP_FIXED, -1, 0) != MAP_FAILED) {
        return true;
    }
    // With as many mappings as a process may have, replacing one is refused, but removing it makes room for the next.
    return errno == ENOMEM && ::munmap(pointer(va), size) == 0 &&
           ::mmap(pointer(va), size, PROT_NONE, flags | MAP_FIXED_NOREPLACE, -1, 0) == pointer(va);
}

int show(Address va, std::size_t size, const Fd& file, bool writable) {
    void* const wanted = pointer(va);
    const int access = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    return ::mmap(wanted, size, access, MAP_SHARED | MAP_FIXED, file.get(), 0) == wanted ? 0 : errno;
}

int furnish(Address va, std::size_t size) {
    void* const wanted = pointer(va);
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (::mmap(wanted, size, PROT_READ | PROT_WRITE, flags, -1, 0) != wanted) {
        return errno;
    }
    ::madvise(wanted, size, MADV_HUGEPAGE);  // only advice
    return populate(va, size, true);
}

int populate(Address va, std::size_t size, bool writable) {
    int result = 0;
    do {
        result = ::madvise(pointer(va), size, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
    } while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : errno;
}

const char* mapping_remedy(int error) {
    return error == ENOMEM ? "raise vm.max_map_count or use larger chunks" : "see the error";
}

Window::Window(const Fd& file, std::size_t size) : base_(reserve_anywhere(size)), size_(size) {
    const int error = show(base_, size, file, true);
    if (error != 0) {
        ::munmap(pointer(base_), size);
        throw errno_error("create", error, "cannot map a new chunk", mapping_remedy(error));
    }
}

Window::~Window() { ::munmap(pointer(base_), size_); }

}  // namespace vnpu
