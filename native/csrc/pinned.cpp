#include "pinned.h"

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "book.h"

namespace vnpu {

namespace {

constexpr std::size_t page = 4096;

}  // namespace

void Pinned::check(const char* call, Address base, std::size_t size) const {
    if (size == 0 || size % page != 0 || base % page != 0 || base + size < base) {
        throw errno_error(call, EINVAL, std::to_string(size) + " bytes at " + hex(base) + " are no whole pages",
                          "pin multiples of 4096 bytes");
    }
    const auto above = ranges_.lower_bound(base);
    const bool hits_above = above != ranges_.end() && above->first - base < size;
    const bool hits_below = above != ranges_.begin() && base - std::prev(above)->first < std::prev(above)->second.size;
    if (hits_above || hits_below) {
        throw errno_error(call, EEXIST, "something in the " + std::to_string(size) + " bytes at " + hex(base) +
                          " is pinned already", "unregister it first");
    }
}

std::size_t Pinned::find(const char* call, Address base, Pinning how) const {
    const auto found = ranges_.find(base);
    if (found == ranges_.end() || found->second.how != how) {
        throw errno_error(call, EINVAL, "nothing was pinned at " + hex(base) + " by the verb this one undoes",
                          how == Pinning::pinned ? "pass what pin returned" : "pass what register_host was given");
    }
    return found->second.size;
}

bool mapped_writable(Address address) {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        unsigned long from = 0;
        unsigned long to = 0;
        char access[5] = "";
        if (std::sscanf(line.c_str(), "%lx-%lx %4s", &from, &to, access) == 3 && address >= from && address < to) {
            return access[1] == 'w';
        }
    }
    return false;
}

}  // namespace vnpu
