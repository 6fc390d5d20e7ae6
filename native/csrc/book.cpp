#include "book.h"

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <iterator>

namespace vnpu {

namespace {

constexpr Address hint_alignment = Address{1} << 30;  // what aclrtReserveMemAddress wants of an expected address

const char* word(Origin origin) { return origin == Origin::own ? "own" : "imported"; }

DriverError rule(const char* call, int error, const std::string& message, const char* remedy) {
    return errno_error(call, error, message, remedy);
}

}  // namespace

std::string hex(Address value) {
    char text[32];
    std::snprintf(text, sizeof text, "0x%" PRIx64, value);
    return text;
}

void Book::check_size(const char* call, std::size_t size) const {
    if (size == 0 || size % granularity_ != 0) {
        throw rule(call, EINVAL,
                   "size " + std::to_string(size) + " is no positive multiple of " + std::to_string(granularity_),
                   "round it up to the driver's granularity");
    }
}

void Book::check_reserve(std::size_t size, Address hint) const {
    check_size("reserve", size);
    if (hint % hint_alignment != 0) {
        throw rule("reserve", EINVAL, "hint " + hex(hint) + " is no multiple of 1 GiB", "align the hint to 1 GiB");
    }
}

void Book::reserve(Address base, std::size_t size) { reservations_.emplace(base, Reservation{size, 0, Origin::own}); }

std::size_t Book::check_release(Address base) const {
    const auto found = reservations_.find(base);
    if (found == reservations_.end()) {
        throw rule("release", EINVAL, "no reservation starts at " + hex(base), "pass what reserve returned");
    }
    if (found->second.mapped != 0) {
        throw rule("release", EBUSY,
                   std::to_string(found->second.mapped) + " chunks are still mapped in the reservation at " + hex(base),
                   "unmap them first");
    }
    return found->second.size;
}

std::size_t Book::release(Address base) {
    const std::size_t size = check_release(base);
    reservations_.erase(base);
    return size;
}

Handle Book::add(std::size_t size, Origin origin) {
    chunks_.emplace(next_, Chunk{size, origin, false, 0, true});
    return next_++;
}

Book::Entry Book::check_remove(Handle handle) const {
    const Chunk& gone = chunk("destroy", handle);
    if (gone.mapped_at != 0) {
        throw rule("destroy", EBUSY,
                   "handle " + std::to_string(handle) + " is mapped at " + hex(gone.mapped_at), "unmap it first");
    }
    return {gone.size, gone.origin};
}

Book::Entry Book::remove(Handle handle) {
    const Entry entry = check_remove(handle);
    chunks_.erase(handle);
    return entry;
}

void Book::mark_exported(Handle handle) {
    Chunk& out = chunk("export_handle", handle);
    if (out.origin == Origin::imported) {
        throw rule("export_handle", EPERM, "handle " + std::to_string(handle) + " is imported",
                   "only the process that created a chunk exports it; pass on the descriptor you were sent");
    }
    if (out.exported) {
        throw rule("export_handle", EALREADY, "handle " + std::to_string(handle) + " is exported already",
                   "keep the descriptor of the first export and send that one again");
    }
    out.exported = true;
}

void Book::unmark_exported(Handle handle) { chunks_.at(handle).exported = false; }

std::size_t Book::map(const Placement& placement) {
    const auto [va, handle, writable] = placement;
    Chunk& placed = chunk("map", handle);
    if (placed.mapped_at != 0) {
        throw rule("map", EBUSY, "handle " + std::to_string(handle) + " is mapped at " + hex(placed.mapped_at),
                   "a chunk is mapped at one address only: unmap it there first");
    }
    if (va % granularity_ != 0) {
        throw rule("map", EINVAL, hex(va) + " is no multiple of " + std::to_string(granularity_),
                   "align the address to the driver's granularity");
    }
    Reservation& around = reservation_around(va, placed.size);
    if (around.mapped != 0 && around.origin != placed.origin) {
        throw rule("map", EPERM,
                   std::string("the reservation holds ") + word(around.origin) + " chunks, handle " +
                       std::to_string(handle) + " is " + word(placed.origin),
                   "use one reservation for own and another for imported chunks");
    }
    check_free(va, placed.size);
    mapped_.emplace(va, handle);
    placed.mapped_at = va;
    placed.writable = writable;
    around.mapped += 1;
    around.origin = placed.origin;
    return placed.size;
}

Placement Book::unmap(Address va) {
    const auto found = mapped_.find(va);
    if (found == mapped_.end()) {
        throw rule("unmap", EINVAL, "no chunk is mapped at " + hex(va), "pass the address the chunk was mapped at");
    }
    Chunk& freed = chunks_.at(found->second);
    const Placement gone{va, found->second, freed.writable};
    reservation_around(va, freed.size).mapped -= 1;
    freed.mapped_at = 0;
    mapped_.erase(found);
    return gone;
}

void Book::check_mapped(const char* call, Address start, std::size_t length, bool writing) const {
    const Address end = start + length;
    for (Address at = start; at < end;) {
        const auto above = mapped_.upper_bound(at);
        const auto found = above == mapped_.begin() ? mapped_.end() : std::prev(above);
        const Chunk* const inside = found == mapped_.end() ? nullptr : &chunks_.at(found->second);
        if (inside == nullptr || at - found->first >= inside->size) {
            throw rule(call, EFAULT, "nothing is mapped at " + hex(at), "map the device's side of the copy first");
        }
        if (writing && !inside->writable) {
            throw rule(call, EACCES, "the chunk at " + hex(found->first) + " is mapped read-only",
                       "map it writable, or copy elsewhere");
        }
        at = found->first + inside->size;
    }
}

std::pair<std::size_t, Address> Book::own(const char* call, Handle handle) const {
    const Chunk& found = chunk(call, handle);
    if (found.origin != Origin::own) {
        throw rule(call, EPERM, "handle " + std::to_string(handle) + " is imported",
                   "leave that to the process that created the chunk");
    }
    return {found.size, found.mapped_at};
}

void Book::check_exported(const char* call, Handle handle) const {
    if (!chunk(call, handle).exported) {
        throw rule(call, EINVAL, "handle " + std::to_string(handle) + " is not exported", "export it first");
    }
}

std::map<Address, std::size_t> Book::empty_reservations() const {
    std::map<Address, std::size_t> empty;
    for (const auto& [base, reservation] : reservations_) {
        if (reservation.mapped == 0) {
            empty.emplace(base, reservation.size);
        }
    }
    return empty;
}

void Book::count(DriverStats& stats) const {
    stats.handles = chunks_.size();
    stats.reservations = reservations_.size();
    for (const auto& [handle, chunk] : chunks_) {
        (chunk.origin == Origin::own ? stats.own_bytes : stats.imported_bytes) += chunk.size;
        stats.mapped_bytes += chunk.mapped_at != 0 ? chunk.size : 0;
    }
}

Book::Chunk& Book::chunk(const char* call, Handle handle) {
    return const_cast<Chunk&>(std::as_const(*this).chunk(call, handle));
}

const Book::Chunk& Book::chunk(const char* call, Handle handle) const {
    const auto found = chunks_.find(handle);
    if (found == chunks_.end()) {
        throw rule(call, EINVAL, "no handle " + std::to_string(handle),
                   "pass what create or import_handle returned and destroy has not taken");
    }
    return found->second;
}

Book::Reservation& Book::reservation_around(Address va, std::size_t size) {
    const auto above = reservations_.upper_bound(va);
    if (above != reservations_.begin()) {
        auto& [base, reservation] = *std::prev(above);
        if (va - base <= reservation.size && size <= reservation.size - (va - base)) {
            return reservation;
        }
    }
    throw rule("map", EINVAL, std::to_string(size) + " bytes at " + hex(va) + " do not lie in one reservation",
               "reserve the range first");
}

void Book::check_free(Address va, std::size_t size) const {
    const auto above = mapped_.lower_bound(va);
    const bool hits_above = above != mapped_.end() && above->first - va < size;
    const bool hits_below =
        above != mapped_.begin() && va - std::prev(above)->first < chunks_.at(std::prev(above)->second).size;
    if (hits_above || hits_below) {
        throw rule("map", EEXIST, "something is mapped in the " + std::to_string(size) + " bytes at " + hex(va),
                   "unmap it first");
    }
}

}  // namespace vnpu
