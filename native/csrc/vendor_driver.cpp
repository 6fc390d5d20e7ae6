// The driver over a vendor's runtime: Ascend's rules by the same book as the host's, and a way back from every step that
// fails.
#include <algorithm>
#include <cerrno>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "book.h"
#include "pinned.h"
#include "scratch.h"
#include "vendor.h"
#include "vendor_streams.h"

namespace vnpu {

namespace {

class VendorDriver final : public Driver {
   public:
    VendorDriver(std::unique_ptr<Vendor> vendor, int device, std::size_t limit, std::size_t granularity)
        : vendor_(std::move(vendor)), device_(device), limit_(limit), book_(granularity), granularity_(granularity) {}
    ~VendorDriver() override;

    std::string_view name() const override { return vendor_->name(); }
    std::string_view backing() const override { return vendor_->library(); }
    int device() const override { return device_; }
    bool huge() const override { return true; }
    std::size_t granularity() const override { return granularity_; }

    Address reserve(std::size_t size, Address hint) override;
    void release(Address va) override;
    Handle create(std::size_t size) override;
    void destroy(Handle handle) override;
    void wipe(std::span<const Handle> handles) override;
    Sharing sharing() const override { return vendor_->sharing(); }
    std::int32_t share_id() const override;
    void permit(Handle handle, std::span<const std::int32_t> share_ids) override;
    Shareable export_handle(Handle handle) override;
    Handle import_handle(Shareable shareable, std::size_t size) override;
    void map_many(std::span<const Placement> placements) override;
    void unmap_many(std::span<const Address> vas) override;
    Address pin(std::size_t size) override;
    void unpin(Address base) override;
    void register_host(Address base, std::size_t size) override;
    void unregister_host(Address base) override;
    Streams& streams() override { return streams_; }
    std::unique_ptr<OrderedCopy> start_copy(std::vector<CopyEntry> entries, CopyKind kind,
                                            const CopyOptions&) override {
        return copy_by_stream(streams_, std::move(entries), kind);
    }
    std::size_t free_bytes() const override;
    DriverStats stats() const override;

   private:
    struct Chunk {
        Raw raw;
        Shareable shareable = 0;  // of a driver that shares by handle: what it was exported as or imported from
    };

    std::size_t room() const;
    void take_room(std::size_t size);
    Handle keep(Raw raw, std::size_t size, Origin origin, Shareable shareable);
    void check_stranger(Shareable shareable) const;
    void show(std::span<const Placement> placements, std::size_t& shown);
    bool hide(const Placement& placement) noexcept;
    void undo_map(std::span<const Placement> booked, std::size_t shown) noexcept;
    void undo_unmap(std::span<const Placement> booked, std::size_t hidden) noexcept;

    const std::unique_ptr<Vendor> vendor_;
    const int device_;
    const std::size_t limit_;
    mutable std::mutex mutex_;  // guards everything below up to the streams
    Book book_;
    std::unordered_map<Handle, Chunk> chunks_;
    Pinned pinned_;
    std::size_t own_bytes_ = 0;  // chunks of ours, and those being made
    const std::size_t granularity_;
    Scratch scratch_{*vendor_};
    VendorStreams streams_{*vendor_, [this](auto entries, CopyKind kind) {
                               const std::lock_guard lock(mutex_);
                               check_copy(book_, entries, kind);
                           }};
};

// Handles go, mappings stay: memory goes back to the device when both are gone.
VendorDriver::~VendorDriver() {
    attempt([this] {  // the device may be lost, or the runtime have ended before us
        const Entered entered(*vendor_);
        for (const auto& entry : book_.empty_reservations()) {
            attempt([&] { vendor_->release(entry.first, entry.second); });
        }
        for (const auto& entry : chunks_) {
            attempt([&] { vendor_->destroy(entry.second.raw); });
        }
    });
}

Address VendorDriver::reserve(std::size_t size, Address hint) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    book_.check_reserve(size, hint);
    const Address base = vendor_->reserve(size, hint);
    if (hint != 0 && base != hint) {
        vendor_->release(base, size);
        throw errno_error("reserve", EEXIST, hex(hint) + " is taken, or not for the device",
                          "choose a hint whose range is free, or 0");
    }
    book_.reserve(base, size);
    return base;
}

void VendorDriver::release(Address va) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    vendor_->release(va, book_.check_release(va));
    book_.release(va);
}

std::size_t VendorDriver::room() const {
    const std::size_t left = vendor_->free_bytes();
    return limit_ != 0 ? std::min(left, limit_ - own_bytes_) : left;
}

void VendorDriver::take_room(std::size_t size) {
    const std::lock_guard lock(mutex_);
    book_.check_size("create", size);
    if (size > room()) {
        throw errno_error("create", ENOSPC,
                          std::to_string(size) + " bytes wanted, " + std::to_string(room()) + " are free",
                          "destroy chunks, raise the driver's limit, or free device memory");
    }
    own_bytes_ += size;
}

Handle VendorDriver::create(std::size_t size) {
    const Entered entered(*vendor_);
    take_room(size);
    Raw raw = 0;
    try {
        raw = vendor_->create(size);  // without the lock: it takes long
        scratch_.zero("create", raw, size);
        const std::lock_guard lock(mutex_);
        return keep(raw, size, Origin::own, 0);
    } catch (...) {
        if (raw != 0) {
            insist([&] { vendor_->destroy(raw); });
        }
        const std::lock_guard lock(mutex_);
        own_bytes_ -= size;
        throw;
    }
}

void VendorDriver::destroy(Handle handle) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    book_.check_remove(handle);
    vendor_->destroy(chunks_.at(handle).raw);
    const Book::Entry gone = book_.remove(handle);
    own_bytes_ -= gone.origin == Origin::own ? gone.size : 0;
    chunks_.erase(handle);
}

Handle VendorDriver::keep(Raw raw, std::size_t size, Origin origin, Shareable shareable) {
    const Handle handle = book_.add(size, origin);
    chunks_.emplace(handle, Chunk{raw, shareable});
    return handle;
}

void VendorDriver::wipe(std::span<const Handle> handles) {
    const Entered entered(*vendor_);
    for (const Handle handle : handles) {
        const std::lock_guard lock(mutex_);  // so that nobody maps or destroys it meanwhile
        const auto [size, mapped_at] = book_.own("wipe", handle);
        if (mapped_at == 0) {
            scratch_.zero("wipe", chunks_.at(handle).raw, size);
        } else {
            scratch_.zero_at("wipe", mapped_at, size);
        }
    }
}

std::int32_t VendorDriver::share_id() const {
    const Entered entered(*vendor_);
    return vendor_->share_id();
}

void VendorDriver::permit(Handle handle, std::span<const std::int32_t> share_ids) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    book_.check_exported("permit", handle);
    if (!share_ids.empty()) {
        vendor_->permit(chunks_.at(handle).shareable, share_ids);
    }
}

Shareable VendorDriver::export_handle(Handle handle) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    book_.mark_exported(handle);
    Chunk& chunk = chunks_.at(handle);
    try {
        return chunk.shareable = vendor_->export_handle(chunk.raw);
    } catch (...) {
        book_.unmark_exported(handle);
        throw;
    }
}

// A number names a chunk; a descriptor does not tell which chunk it is of.
void VendorDriver::check_stranger(Shareable shareable) const {
    const auto same = [&](const auto& entry) { return entry.second.shareable == shareable; };
    if (sharing() == Sharing::handle && std::any_of(chunks_.begin(), chunks_.end(), same)) {
        throw errno_error("import_handle", EALREADY, "this driver holds that chunk already",
                          "import a chunk once, and not where it was created");
    }
}

Handle VendorDriver::import_handle(Shareable shareable, std::size_t size) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    book_.check_size("import_handle", size);
    check_stranger(shareable);
    const Raw raw = vendor_->import_handle(shareable);
    return keep(raw, size, Origin::imported, sharing() == Sharing::handle ? shareable : 0);
}

void VendorDriver::show(std::span<const Placement> placements, std::size_t& shown) {
    std::vector<Piece> pieces;
    pieces.reserve(placements.size());
    for (; shown < placements.size(); ++shown) {
        const auto& [va, handle, writable] = placements[shown];
        const std::size_t size = book_.size_of(handle);
        vendor_->map(va, size, chunks_.at(handle).raw);
        pieces.push_back({va, size, writable});
    }
    std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.va < b.va; });
    vendor_->access(pieces);
}

bool VendorDriver::hide(const Placement& placement) noexcept {
    return attempt([&] { vendor_->unmap(placement.va, book_.size_of(placement.handle)); });
}

// What the vendor does not give up again stays booked as mapped, because it is.
void VendorDriver::undo_map(std::span<const Placement> booked, std::size_t shown) noexcept {
    for (std::size_t i = 0; i < booked.size(); ++i) {
        if (i >= shown || hide(booked[i])) {
            book_.unmap(booked[i].va);
        }
    }
}

void VendorDriver::map_many(std::span<const Placement> placements) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    std::size_t booked = 0;
    std::size_t shown = 0;
    try {
        for (; booked < placements.size(); ++booked) {
            book_.map(placements[booked]);
        }
        show(placements, shown);
    } catch (...) {
        undo_map(placements.first(booked), shown);
        throw;
    }
}

// Book the placements again and bring those back that are hidden: the first ones. One that does not come back stays
// away in the book too.
void VendorDriver::undo_unmap(std::span<const Placement> booked, std::size_t hidden) noexcept {
    for (std::size_t i = 0; i < booked.size(); ++i) {
        std::size_t shown = 0;
        book_.map(booked[i]);
        if (i < hidden && !attempt([&] { show(booked.subspan(i, 1), shown); })) {
            undo_map(booked.subspan(i, 1), shown);
        }
    }
}

void VendorDriver::unmap_many(std::span<const Address> vas) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    std::vector<Placement> booked;
    booked.reserve(vas.size());
    std::size_t hidden = 0;
    try {
        for (const Address va : vas) {
            booked.push_back(book_.unmap(va));
        }
        for (; hidden < booked.size(); ++hidden) {
            vendor_->unmap(booked[hidden].va, book_.size_of(booked[hidden].handle));
        }
    } catch (...) {
        undo_unmap(booked, hidden);
        throw;
    }
}

Address VendorDriver::pin(std::size_t size) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    pinned_.check("pin", 0, size);
    const Address base = vendor_->pin(size);
    pinned_.add(base, size, Pinning::pinned);
    return base;
}

void VendorDriver::unpin(Address base) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    pinned_.find("unpin", base, Pinning::pinned);
    vendor_->unpin(base);
    pinned_.remove(base);
}

void VendorDriver::register_host(Address base, std::size_t size) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    pinned_.check("register_host", base, size);
    vendor_->register_host(base, size);
    pinned_.add(base, size, Pinning::registered);
}

void VendorDriver::unregister_host(Address base) {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    pinned_.find("unregister_host", base, Pinning::registered);
    vendor_->unregister_host(base);
    pinned_.remove(base);
}

std::size_t VendorDriver::free_bytes() const {
    const Entered entered(*vendor_);
    const std::lock_guard lock(mutex_);
    return room() / granularity_ * granularity_;
}

DriverStats VendorDriver::stats() const {
    const std::lock_guard lock(mutex_);
    DriverStats stats;
    book_.count(stats);
    stats.huge_bytes = stats.own_bytes;  // a device's pages are 2 MiB or larger
    return stats;
}

}  // namespace

std::unique_ptr<Driver> make_vendor_driver(std::unique_ptr<Vendor> vendor, int device, std::size_t limit) {
    std::size_t granularity = 0;
    {
        const Entered entered(*vendor);
        granularity = vendor->granularity();
    }
    return std::make_unique<VendorDriver>(std::move(vendor), device, limit, granularity);
}

}  // namespace vnpu
