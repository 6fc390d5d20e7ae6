// The host driver: a chunk is a file of its own on a private huge-page tmpfs (else a memfd), mapped shared; an address
// range is reserved by mapping nothing there; exporting a chunk is handing out a descriptor of its file.
#include "host.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "book.h"
#include "fd.h"
#include "hugefs.h"
#include "pages.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace vnpu {

namespace {

constexpr std::size_t page = std::size_t{2} << 20;  // Ascend's granularity, and the size of a huge page

void* pointer(Address va) { return reinterpret_cast<void*>(va); }
Address address(const void* p) { return reinterpret_cast<Address>(p); }

const char* mapping_remedy(int error) {
    return error == ENOMEM ? "raise vm.max_map_count or use larger chunks" : "see the error";
}

// Nothing is there, and nobody else can be put there. False: the kernel refused, and what was there still is.
bool hide(Address va, std::size_t size) {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (::mmap(pointer(va), size, PROT_NONE, flags | MAP_FIXED, -1, 0) != MAP_FAILED) {
        return true;
    }
    // With as many mappings as a process may have, replacing one is refused, but removing it makes room for the next.
    return errno == ENOMEM && ::munmap(pointer(va), size) == 0 &&
           ::mmap(pointer(va), size, PROT_NONE, flags | MAP_FIXED_NOREPLACE, -1, 0) == pointer(va);
}

// Address of `size` inaccessible bytes at a multiple of `page`.
Address reserve_anywhere(std::size_t size) {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* const start = ::mmap(nullptr, size + page, PROT_NONE, flags, -1, 0);
    if (start == MAP_FAILED) {
        throw errno_error("reserve", errno, "no " + std::to_string(size) + " bytes of address space",
                          "check ulimit -v and the size");
    }
    const Address base = (address(start) + page - 1) / page * page;
    const std::size_t before = base - address(start);
    if (before != 0) {
        ::munmap(start, before);
    }
    ::munmap(pointer(base + size), page - before);
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

using Identity = std::pair<dev_t, ino_t>;

struct Chunk {
    Fd file;
    std::size_t huge_bytes = 0;  // of an own chunk, measured
    bool huge_file = false;      // the kernel would use huge pages for this file
    Identity identity{};
};

// A mapping for the time of a scope.
class Window {
   public:
    Window(const Fd& file, std::size_t size) : base_(reserve_anywhere(size)), size_(size) {
        if (::mmap(pointer(base_), size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file.get(), 0) == MAP_FAILED) {
            const int error = errno;
            ::munmap(pointer(base_), size);
            throw errno_error("create", error, "cannot map a new chunk", mapping_remedy(error));
        }
    }
    Window(const Window&) = delete;
    Window& operator=(const Window&) = delete;
    ~Window() { ::munmap(pointer(base_), size_); }
    void* data() const { return pointer(base_); }

   private:
    Address base_;
    std::size_t size_;
};

int populate(void* start, std::size_t size) {
    int result = 0;
    do {
        result = ::madvise(start, size, MADV_POPULATE_WRITE);
    } while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : errno;
}

// Bytes of the chunk on huge pages, once all of it has pages.
std::size_t populate_chunk(const Fd& file, std::size_t size) {
    const Window window(file, size);
    ::madvise(window.data(), size, MADV_HUGEPAGE);  // only advice: it helps a memfd where shmem_enabled is "advise"
    const int error = populate(window.data(), size);
    if (error == EINVAL) {
        throw errno_error("create", error, "the kernel cannot populate pages", "use Linux 5.14 or newer");
    }
    if (error != 0) {  // EFAULT is how a full file system looks from here
        throw errno_error("create", error == EFAULT ? ENOSPC : error, "no pages for a chunk of " + std::to_string(size),
                          "free memory, or raise the driver's limit");
    }
    return huge_bytes(window.data(), size);
}

// tmpfs reports the huge page size as its block size for files that it backs with huge pages.
bool is_huge(const struct stat& facts) { return static_cast<std::size_t>(facts.st_blksize) >= page; }

Chunk adopt(Fd file) {
    struct stat facts{};
    if (::fstat(file.get(), &facts) != 0) {
        throw errno_error("import_handle", errno, "cannot stat the descriptor", "pass an open descriptor");
    }
    return {std::move(file), 0, is_huge(facts), {facts.st_dev, facts.st_ino}};
}

void check_shareable(int fd, std::size_t size) {
    struct stat facts{};
    struct statfs system{};
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || ::fstat(fd, &facts) != 0 || ::fstatfs(fd, &system) != 0) {
        throw errno_error("import_handle", errno, "descriptor " + std::to_string(fd) + " cannot be used",
                          "pass the descriptor that came from export_handle");
    }
    if (!S_ISREG(facts.st_mode) || static_cast<std::uint64_t>(system.f_type) != TMPFS_MAGIC ||
        (flags & O_ACCMODE) != O_RDWR) {
        throw errno_error("import_handle", EINVAL, "descriptor " + std::to_string(fd) + " is no chunk",
                          "pass the descriptor that came from export_handle");
    }
    if (static_cast<std::uint64_t>(facts.st_size) != size) {
        throw errno_error("import_handle", EINVAL,
                          "the chunk has " + std::to_string(facts.st_size) + " bytes, not " + std::to_string(size),
                          "pass the size it was created with: a chunk is mapped whole");
    }
}

// Where the files of own chunks come from.
struct Backing {
    Fd directory;       // none: memfd
    bool huge = false;  // the kernel would use huge pages for them

    Fd file(std::size_t size) const { return directory ? unnamed_file(directory, size) : memory_file(size); }
};

Fd open_directory(const DriverOptions& options) {
    if (options.backing == "memfd") {
        return {};
    }
    if (options.backing.starts_with('/')) {
        return open_tmpfs(options.backing);
    }
    if (options.backing != "auto" && options.backing != "tmpfs") {
        throw errno_error("open_driver", EINVAL, "backing '" + options.backing + "' is unknown",
                          "use auto, tmpfs, memfd, or the absolute path of a folder on a tmpfs");
    }
    try {
        return mount_huge_tmpfs(options.limit);
    } catch (const DriverError&) {
        if (options.backing == "tmpfs") {
            throw;
        }
        return {};
    }
}

Backing open_backing(const DriverOptions& options) {
    Backing backing{open_directory(options)};
    const Fd probe = backing.file(page);  // takes no page
    struct stat facts{};
    backing.huge = ::fstat(probe.get(), &facts) == 0 && is_huge(facts);
    return backing;
}

class HostDriver final : public Driver {
   public:
    HostDriver(int device, std::size_t limit, Backing backing)
        : device_(device), limit_(limit), backing_(std::move(backing)) {}

    ~HostDriver() override {
        for (const auto& [base, size] : book_.empty_reservations()) {
            ::munmap(pointer(base), size);
        }
    }

    std::string_view name() const override { return "host"; }
    std::string_view backing() const override { return backing_.directory ? "tmpfs" : "memfd"; }
    int device() const override { return device_; }
    bool huge() const override { return backing_.huge; }
    std::size_t granularity() const override { return page; }

    Address reserve(std::size_t size, Address hint) override;
    void release(Address va) override;
    Handle create(std::size_t size) override;
    void destroy(Handle handle) override;
    Shareable export_handle(Handle handle) override;
    Handle import_handle(Shareable shareable, std::size_t size) override;
    void map_many(std::span<const Placement> placements) override;
    void unmap_many(std::span<const Address> vas) override;
    std::size_t free_bytes() const override;
    DriverStats stats() const override;

   private:
    struct Run {  // neighbours that go in one system call
        Address va;
        std::size_t size;
    };

    std::size_t room() const;
    void take_room(std::size_t size);
    Chunk new_chunk(std::size_t size) const;
    Handle keep(Chunk chunk, std::size_t size, Origin origin);
    void show(const Placement& placement);
    std::vector<Run> runs(std::span<const Placement> placements) const;
    void undo_map(std::span<const Placement> booked, std::size_t shown);
    void undo_unmap(std::span<const Placement> booked, std::size_t hidden_until);

    const int device_;
    const std::size_t limit_;
    const Backing backing_;
    mutable std::mutex mutex_;  // guards everything below
    Book book_{page};
    std::unordered_map<Handle, Chunk> chunks_;
    std::set<Identity> identities_;  // of chunks_
    std::size_t own_bytes_ = 0;  // chunks of ours, and those being made
};

Address HostDriver::reserve(std::size_t size, Address hint) {
    const std::lock_guard lock(mutex_);
    book_.check_reserve(size, hint);
    if (hint != 0) {
        reserve_at(hint, size);
    }
    const Address base = hint != 0 ? hint : reserve_anywhere(size);
    book_.reserve(base, size);
    return base;
}

void HostDriver::release(Address va) {
    const std::lock_guard lock(mutex_);
    ::munmap(pointer(va), book_.release(va));
}

std::size_t HostDriver::room() const {
    std::size_t left = available_memory();
    if (limit_ != 0) {
        left = std::min(left, limit_ - own_bytes_);
    }
    struct statfs system{};
    if (backing_.directory && ::fstatfs(backing_.directory.get(), &system) == 0 && system.f_blocks != 0) {
        // Less than the limit leaves where another process still holds pages of a chunk destroyed here.
        left = std::min<std::size_t>(left, system.f_bavail * static_cast<std::size_t>(system.f_bsize));
    }
    return left;
}

void HostDriver::take_room(std::size_t size) {
    const std::lock_guard lock(mutex_);
    book_.check_size("create", size);
    if (size > room()) {
        throw errno_error("create", ENOSPC,
                          std::to_string(size) + " bytes wanted, " + std::to_string(room()) + " are free",
                          "destroy chunks, raise the driver's limit, or free memory");
    }
    own_bytes_ += size;
}

Chunk HostDriver::new_chunk(std::size_t size) const {
    Fd file = backing_.file(size);
    const std::size_t on_huge_pages = populate_chunk(file, size);
    Chunk chunk = adopt(std::move(file));
    chunk.huge_bytes = on_huge_pages;
    return chunk;
}

Handle HostDriver::create(std::size_t size) {
    take_room(size);
    try {
        Chunk chunk = new_chunk(size);  // without the lock: populating takes long
        const std::lock_guard lock(mutex_);
        return keep(std::move(chunk), size, Origin::own);
    } catch (...) {
        const std::lock_guard lock(mutex_);
        own_bytes_ -= size;
        throw;
    }
}

void HostDriver::destroy(Handle handle) {
    const std::lock_guard lock(mutex_);
    const Book::Entry gone = book_.remove(handle);
    own_bytes_ -= gone.origin == Origin::own ? gone.size : 0;
    const auto chunk = chunks_.find(handle);
    identities_.erase(chunk->second.identity);
    chunks_.erase(chunk);
}

Handle HostDriver::keep(Chunk chunk, std::size_t size, Origin origin) {
    const Handle handle = book_.add(size, origin);
    identities_.insert(chunk.identity);
    chunks_.emplace(handle, std::move(chunk));
    return handle;
}

Shareable HostDriver::export_handle(Handle handle) {
    const std::lock_guard lock(mutex_);
    book_.mark_exported(handle);
    const int fd = ::fcntl(chunks_.at(handle).file.get(), F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        book_.unmark_exported(handle);
        throw errno_error("export_handle", errno, "cannot duplicate the chunk's descriptor",
                          "raise the limit on open files or use larger chunks");
    }
    return static_cast<Shareable>(fd);
}

Handle HostDriver::import_handle(Shareable shareable, std::size_t size) {
    const int fd = shareable <= std::numeric_limits<int>::max() ? static_cast<int>(shareable) : -1;
    const std::lock_guard lock(mutex_);
    book_.check_size("import_handle", size);
    check_shareable(fd, size);
    Fd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy) {
        throw errno_error("import_handle", errno, "cannot duplicate the descriptor",
                          "raise the limit on open files or use larger chunks");
    }
    Chunk chunk = adopt(std::move(copy));
    if (identities_.contains(chunk.identity)) {
        throw errno_error("import_handle", EALREADY, "this driver holds that chunk already",
                          "import a chunk once, and not where it was created");
    }
    return keep(std::move(chunk), size, Origin::imported);
}

// Put the pages at their address. Not to children: whoever forks would keep a device's pages without anybody knowing.
void HostDriver::show(const Placement& placement) {
    const Chunk& chunk = chunks_.at(placement.handle);
    const std::size_t size = book_.size_of(placement.handle);
    void* const start = pointer(placement.va);
    const bool mapped = ::mmap(start, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, chunk.file.get(), 0) !=
                            MAP_FAILED &&
                        ::madvise(start, size, MADV_DONTFORK) == 0;
    int error = mapped ? 0 : errno;
    if (mapped && !chunk.huge_file) {  // a fault for each 4 KiB costs more than one walk
        error = populate(start, size);
    }
    if (error != 0) {
        hide(placement.va, size);
        throw errno_error("map", error, "cannot map a chunk at " + hex(placement.va), mapping_remedy(error));
    }
}

std::vector<HostDriver::Run> HostDriver::runs(std::span<const Placement> placements) const {
    std::vector<Run> runs;
    for (const auto& [va, handle] : placements) {
        const std::size_t size = book_.size_of(handle);
        if (!runs.empty() && runs.back().va + runs.back().size == va) {
            runs.back().size += size;
        } else {
            runs.push_back({va, size});
        }
    }
    return runs;
}

void HostDriver::undo_map(std::span<const Placement> booked, std::size_t shown) {
    for (const auto& [va, size] : runs(booked.first(shown))) {
        hide(va, size);
    }
    for (const Placement& placement : booked) {
        book_.unmap(placement.va);
    }
}

void HostDriver::map_many(std::span<const Placement> placements) {
    const std::lock_guard lock(mutex_);
    std::size_t booked = 0;
    std::size_t shown = 0;
    try {
        for (; booked < placements.size(); ++booked) {
            book_.map(placements[booked].va, placements[booked].handle);
        }
        for (; shown < placements.size(); ++shown) {
            show(placements[shown]);
        }
    } catch (...) {
        undo_map(placements.first(booked), shown);
        throw;
    }
}

// Book the placements again and bring those back whose pages are hidden: the ones below `hidden_until`.
void HostDriver::undo_unmap(std::span<const Placement> booked, std::size_t hidden_until) {
    for (std::size_t i = 0; i < booked.size(); ++i) {
        book_.map(booked[i].va, booked[i].handle);
        if (booked[i].va < hidden_until) {
            show(booked[i]);
        }
    }
}

void HostDriver::unmap_many(std::span<const Address> vas) {
    const std::lock_guard lock(mutex_);
    std::vector<Address> sorted(vas.begin(), vas.end());
    std::sort(sorted.begin(), sorted.end());
    std::vector<Placement> booked;
    booked.reserve(sorted.size());
    Address hidden_until = 0;
    try {
        for (const Address va : sorted) {
            booked.push_back(book_.unmap(va));
        }
        for (const auto& [va, size] : runs(booked)) {
            if (!hide(va, size)) {
                const int error = errno;
                throw errno_error("unmap", error, "cannot unmap the chunks at " + hex(va), mapping_remedy(error));
            }
            hidden_until = va + size;
        }
    } catch (...) {
        undo_unmap(booked, hidden_until);
        throw;
    }
}

std::size_t HostDriver::free_bytes() const {
    const std::lock_guard lock(mutex_);
    return room() / page * page;
}

DriverStats HostDriver::stats() const {
    const std::lock_guard lock(mutex_);
    DriverStats stats;
    book_.count(stats);
    for (const auto& [handle, chunk] : chunks_) {
        stats.huge_bytes += chunk.huge_bytes;
    }
    return stats;
}

}  // namespace

std::unique_ptr<Driver> open_host_driver(int device, const DriverOptions& options) {
    return std::make_unique<HostDriver>(device, options.limit, open_backing(options));
}

}  // namespace vnpu
