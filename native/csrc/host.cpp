// The host driver: a chunk is a file of its own on a private huge-page tmpfs (else a memfd), mapped shared; an address
// range is reserved by mapping nothing there; exporting a chunk is handing out a descriptor of its file.
#include "host.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "book.h"
#include "chunk.h"
#include "host_streams.h"
#include "pages.h"
#include "pinned.h"
#include "space.h"

namespace vnpu {

namespace {

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
    std::size_t granularity() const override { return huge_page; }

    Address reserve(std::size_t size, Address hint) override;
    void release(Address va) override;
    Handle create(std::size_t size) override;
    void destroy(Handle handle) override;
    void wipe(std::span<const Handle> handles) override;
    Sharing sharing() const override { return Sharing::descriptor; }
    std::int32_t share_id() const override { return ::getpid(); }
    void permit(Handle handle, std::span<const std::int32_t> share_ids) override;
    Shareable export_handle(Handle handle) override;
    Handle import_handle(Shareable shareable, std::size_t size) override;
    void map_many(std::span<const Placement> placements) override;
    void unmap_many(std::span<const Address> vas) override;
    Address pin(std::size_t size) override;
    void unpin(Address base) override;
    void register_host(Address base, std::size_t size) override;
    void unregister_host(Address base) override;
    Streams& streams() override { return *streams_; }
    std::unique_ptr<OrderedCopy> start_copy(std::vector<CopyEntry> entries, CopyKind kind,
                                            const CopyOptions& options) override;
    std::size_t free_bytes() const override;
    DriverStats stats() const override;

   private:
    struct Run {  // neighbours that go in one system call
        Address va;
        std::size_t size;
    };

    std::size_t room() const;
    void take_room(std::size_t size);
    std::pair<Fd, std::size_t> own_file(Handle handle) const;
    Handle keep(Chunk chunk, std::size_t size, Origin origin);
    void place(const Placement& placement);
    std::vector<Run> runs(std::span<const Placement> placements) const;
    void undo_map(std::span<const Placement> booked, std::size_t shown);
    void undo_unmap(std::span<const Placement> booked, std::size_t hidden_until);

    const int device_;
    const std::size_t limit_;
    const Backing backing_;
    mutable std::mutex mutex_;  // guards everything below
    Book book_{huge_page};
    std::unordered_map<Handle, Chunk> chunks_;
    std::set<Identity> identities_;  // of chunks_
    Pinned pinned_;
    std::size_t own_bytes_ = 0;  // chunks of ours, and those being made
    const std::unique_ptr<Streams> streams_ = open_host_streams([this](auto entries, CopyKind kind) {
        const std::lock_guard lock(mutex_);
        check_copy(book_, entries, kind);
    });
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

Handle HostDriver::create(std::size_t size) {
    take_room(size);
    try {
        Chunk chunk = create_chunk(backing_, size);  // without the lock: populating takes long
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

// A descriptor of its own, which keeps the chunk whatever happens to the handle.
std::pair<Fd, std::size_t> HostDriver::own_file(Handle handle) const {
    const std::lock_guard lock(mutex_);
    const std::size_t size = book_.own("wipe", handle).first;
    Fd file(::fcntl(chunks_.at(handle).file.get(), F_DUPFD_CLOEXEC, 0));
    if (!file) {
        throw errno_error("wipe", errno, "cannot duplicate the chunk's descriptor",
                          "raise the limit on open files or use larger chunks");
    }
    return {std::move(file), size};
}

void HostDriver::wipe(std::span<const Handle> handles) {
    for (const Handle handle : handles) {
        const auto [file, size] = own_file(handle);
        wipe_chunk("wipe", file, size);  // without the lock: it takes long
    }
}

void HostDriver::permit(Handle handle, std::span<const std::int32_t>) {
    const std::lock_guard lock(mutex_);
    book_.check_exported("permit", handle);
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
    Chunk chunk = import_chunk(fd, size);
    if (identities_.contains(chunk.identity)) {
        throw errno_error("import_handle", EALREADY, "this driver holds that chunk already",
                          "import a chunk once, and not where it was created");
    }
    return keep(std::move(chunk), size, Origin::imported);
}

// Put the pages at their address. Not to children: whoever forks would keep a device's pages without anybody knowing.
void HostDriver::place(const Placement& placement) {
    const Chunk& chunk = chunks_.at(placement.handle);
    const std::size_t size = book_.size_of(placement.handle);
    int error = show(placement.va, size, chunk.file, placement.writable);
    if (error == 0 && ::madvise(pointer(placement.va), size, MADV_DONTFORK) != 0) {
        error = errno;
    }
    if (error == 0 && !chunk.huge_file) {  // a fault for each 4 KiB costs more than one walk
        error = populate(placement.va, size, placement.writable);
    }
    if (error != 0) {
        hide(placement.va, size);
        throw errno_error("map", error, "cannot map a chunk at " + hex(placement.va), mapping_remedy(error));
    }
}

std::vector<HostDriver::Run> HostDriver::runs(std::span<const Placement> placements) const {
    std::vector<Run> runs;
    for (const auto& [va, handle, writable] : placements) {
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
            book_.map(placements[booked]);
        }
        for (; shown < placements.size(); ++shown) {
            place(placements[shown]);
        }
    } catch (...) {
        undo_map(placements.first(booked), shown);
        throw;
    }
}

// Book the placements again and bring those back whose pages are hidden: the ones below `hidden_until`.
void HostDriver::undo_unmap(std::span<const Placement> booked, std::size_t hidden_until) {
    for (std::size_t i = 0; i < booked.size(); ++i) {
        book_.map(booked[i]);
        if (booked[i].va < hidden_until) {
            place(booked[i]);
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

Address HostDriver::pin(std::size_t size) {
    const std::lock_guard lock(mutex_);
    pinned_.check("pin", 0, size);
    const Address base = reserve_anywhere(size);
    const int error = furnish(base, size);
    if (error != 0) {
        ::munmap(pointer(base), size);
        throw errno_error("pin", error, std::to_string(size) + " bytes of host memory are not to be had",
                          "free memory, or pin less");
    }
    pinned_.add(base, size, Pinning::pinned);
    return base;
}

void HostDriver::unpin(Address base) {
    const std::lock_guard lock(mutex_);
    ::munmap(pointer(base), pinned_.find("unpin", base, Pinning::pinned));
    pinned_.remove(base);
}

void HostDriver::register_host(Address base, std::size_t size) {
    const std::lock_guard lock(mutex_);
    pinned_.check("register_host", base, size);
    pinned_.add(base, size, Pinning::registered);
}

void HostDriver::unregister_host(Address base) {
    const std::lock_guard lock(mutex_);
    pinned_.find("unregister_host", base, Pinning::registered);
    pinned_.remove(base);
}

std::unique_ptr<OrderedCopy> HostDriver::start_copy(std::vector<CopyEntry> entries, CopyKind kind,
                                                    const CopyOptions& options) {
    {
        const std::lock_guard lock(mutex_);
        check_copy(book_, entries, kind);
    }
    return copy_by_threads(std::move(entries), options);
}

std::size_t HostDriver::free_bytes() const {
    const std::lock_guard lock(mutex_);
    return room() / huge_page * huge_page;
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
