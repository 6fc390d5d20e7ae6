#include "pages.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include "fd.h"

namespace vnpu {

namespace {

// linux/fs.h of 6.7; declared here so that older headers build.
struct PageRegion {
    std::uint64_t start, end, categories;
};
struct PageScan {
    std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
static_assert(sizeof(PageRegion) == 24 && sizeof(PageScan) == 96);
constexpr unsigned long pagemap_scan = _IOWR('f', 16, PageScan);
constexpr std::uint64_t page_is_huge = 1U << 6;

std::optional<std::size_t> scan_huge_bytes(std::uint64_t start, std::uint64_t end) {
    const Fd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    std::array<PageRegion, 64> regions{};
    std::size_t total = 0;
    while (start < end) {
        PageScan scan{};
        scan.size = sizeof scan;
        scan.start = start;
        scan.end = end;
        scan.vec = reinterpret_cast<std::uintptr_t>(regions.data());
        scan.vec_len = regions.size();
        scan.category_mask = page_is_huge;
        scan.return_mask = page_is_huge;
        const int found = ::ioctl(pagemap.get(), pagemap_scan, &scan);
        if (found < 0) {
            return std::nullopt;
        }
        for (int i = 0; i < found; ++i) {
            total += regions[static_cast<std::size_t>(i)].end - regions[static_cast<std::size_t>(i)].start;
        }
        start = scan.walk_end;
    }
    return total;
}

std::size_t smaps_huge_bytes(std::uint64_t start, std::uint64_t end) {
    std::ifstream smaps("/proc/self/smaps");
    std::string line;
    bool inside = false;
    std::size_t total = 0;
    while (std::getline(smaps, line)) {
        std::uint64_t low = 0;
        std::uint64_t high = 0;
        std::size_t kilobytes = 0;
        if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " ", &low, &high) == 2) {
            inside = low < end && high > start;
        } else if (inside && std::sscanf(line.c_str(), "ShmemPmdMapped: %zu", &kilobytes) == 1) {
            total += kilobytes * 1024;
        }
    }
    return std::min<std::size_t>(total, end - start);
}

constexpr std::size_t unlimited = std::numeric_limits<std::size_t>::max();

std::size_t read_number(const char* path, std::size_t otherwise) {
    std::ifstream file(path);
    std::size_t value = 0;
    return file >> value ? value : otherwise;
}

std::size_t machine_available() {
    std::ifstream meminfo("/proc/meminfo");
    std::string line;
    std::size_t kilobytes = 0;
    while (std::getline(meminfo, line)) {
        if (std::sscanf(line.c_str(), "MemAvailable: %zu", &kilobytes) == 1) {
            return kilobytes * 1024;
        }
    }
    return unlimited;
}

std::size_t group_available() {
    // "max" does not read as a number.
    const std::size_t limit = read_number("/sys/fs/cgroup/memory.max", unlimited);
    const std::size_t used = read_number("/sys/fs/cgroup/memory.current", 0);
    return limit == unlimited ? unlimited : limit - std::min(limit, used);
}

}  // namespace

std::size_t huge_bytes(const void* start, std::size_t length) {
    const auto low = reinterpret_cast<std::uintptr_t>(start);
    const std::optional<std::size_t> scanned = scan_huge_bytes(low, low + length);
    return scanned ? *scanned : smaps_huge_bytes(low, low + length);
}

std::size_t available_memory() { return std::min(machine_available(), group_available()); }

}  // namespace vnpu
